"""What other libraries' quantizers compute, from the published formulas, in plain torch with N x K matrices, under their names."""

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

FOREIGN = SimpleNamespace()


def copied(name, attribute):
    """A class as found in somebody's repository: the name is that of the library, the module is not."""

    def register(cls):
        cls.__qualname__ = cls.__name__ = name
        cls.__module__ = "somebody.quantize"
        setattr(FOREIGN, attribute, cls)
        return cls

    return register


def nearest(rows, codes):
    return torch.cdist(rows.detach().double(), codes.detach().double()).argmin(-1)


def errors(rows, quantized):
    """(x - sg q)^2 and (sg x - q)^2, means."""
    return (rows - quantized.detach()).square().mean(), (rows.detach() - quantized).square().mean()


def passed(rows, quantized):
    return rows + (quantized - rows).detach()


def last(z):
    return z.movedim(1, -1)


def perplexity(indices, size):
    share = torch.bincount(indices.flatten(), minlength=size) / indices.numel()
    return (-(share * (share + 1e-10).log()).sum()).exp()


class Remap(nn.Module):
    def set_remap(self, remap, unknown_index, size):
        self.remap, self.re_embed = remap, size
        if remap is not None:
            self.register_buffer("used", torch.tensor(np.load(remap)))
            self.re_embed = len(self.used) + (unknown_index == "extra")
            self.unknown_index = len(self.used) if unknown_index == "extra" else unknown_index

    def to_used(self, indices):
        places = {int(code): place for place, code in reversed(list(enumerate(self.used)))}
        return torch.tensor([places.get(int(index), self.unknown_index) for index in indices.flatten()]).view_as(indices)


@copied("VectorQuantizer", "taming_first")
class TamingFirst(nn.Module):
    def __init__(self, n_e, e_dim, beta):
        super().__init__()
        self.n_e, self.e_dim, self.beta = n_e, e_dim, beta
        self.embedding = nn.Embedding(n_e, e_dim)

    def forward(self, z):
        rows = last(z)
        indices = nearest(rows, self.embedding.weight)
        one_hot = F.one_hot(indices.flatten(), self.n_e).float()
        quantized = (one_hot @ self.embedding.weight).view_as(rows)
        commitment, codebook = errors(rows, quantized)
        extras = perplexity(indices, self.n_e), one_hot, indices.reshape(-1, 1)
        return passed(rows, quantized).movedim(-1, 1), commitment + self.beta * codebook, extras


@copied("VectorQuantizer2", "taming")
class Taming(Remap):
    def __init__(self, n_e, e_dim, beta, remap=None, unknown_index="random", sane_index_shape=False, legacy=True):
        super().__init__()
        self.n_e, self.e_dim, self.beta, self.legacy, self.sane_index_shape = n_e, e_dim, beta, legacy, sane_index_shape
        self.embedding = nn.Embedding(n_e, e_dim)
        self.set_remap(remap, unknown_index, n_e)

    def forward(self, z, temp=None, rescale_logits=False, return_logits=False):
        rows = last(z)
        indices = nearest(rows, self.embedding.weight)
        quantized = self.embedding(indices)
        commitment, codebook = errors(rows, quantized)
        loss = commitment + self.beta * codebook if self.legacy else self.beta * commitment + codebook
        indices = indices if self.remap is None else self.to_used(indices)
        if not self.sane_index_shape:
            indices = indices.reshape(-1) if self.remap is None else indices.reshape(-1, 1)
        return passed(rows, quantized).movedim(-1, 1), loss, (None, None, indices)


@copied("GumbelQuantize", "gumbel")
class Gumbel(Remap):
    def __init__(self, num_hiddens, embedding_dim, n_embed, straight_through=True, kl_weight=5e-4, temp_init=1.0, remap=None, unknown_index=0):
        super().__init__()
        self.embedding_dim, self.n_embed, self.straight_through = embedding_dim, n_embed, straight_through
        self.temperature, self.kl_weight, self.use_vqinterface = temp_init, kl_weight, True
        self.proj, self.embed = nn.Conv2d(num_hiddens, n_embed, 1), nn.Embedding(n_embed, embedding_dim)
        self.set_remap(remap, unknown_index, n_embed)

    def forward(self, z, temp=None, return_logits=False):
        logits = self.proj(z) if self.remap is None else self.proj(z)[:, self.used]
        noisy = (logits - torch.empty_like(logits).exponential_().log()) / (self.temperature if temp is None else temp)
        soft = noisy.softmax(1)
        hard = F.one_hot(soft.argmax(1), soft.shape[1]).movedim(-1, 1).float()
        share = hard - soft.detach() + soft if self.straight_through or not self.training else soft
        codes = self.embed.weight if self.remap is None else self.embed.weight[self.used]
        q = logits.softmax(1)
        loss = self.kl_weight * (q * (q * self.n_embed + 1e-10).log()).sum(1).mean()
        return torch.einsum("bkhw,kd->bdhw", share, codes), loss, (None, None, share.argmax(1))


def follow(self_codes, cluster_size, average, rows, indices, decay, eps):
    """The running means of the appendix of the VQ-VAE paper."""
    one_hot = F.one_hot(indices, len(self_codes)).to(rows.dtype)
    cluster_size.data.mul_(decay).add_(one_hot.sum(0), alpha=1 - decay)
    average.data.mul_(decay).add_(one_hot.T @ rows, alpha=1 - decay)
    total = cluster_size.sum()
    smoothed = (cluster_size + eps) / (total + len(self_codes) * eps) * total
    self_codes.data.copy_(average / smoothed[:, None])


class EMAEmbedding(nn.Module):
    def __init__(self, size, dim, decay, eps):
        super().__init__()
        self.decay, self.eps, self.update = decay, eps, True
        self.weight = nn.Parameter(torch.randn(size, dim), requires_grad=False)
        self.cluster_size = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.embed_avg = nn.Parameter(self.weight.clone(), requires_grad=False)


@copied("EMAVectorQuantizer", "taming_ema")
class TamingEMA(Remap):
    def __init__(self, n_embed, embedding_dim, beta, decay=0.99, eps=1e-5, remap=None, unknown_index="random"):
        super().__init__()
        self.num_tokens, self.codebook_dim, self.beta = n_embed, embedding_dim, beta
        self.embedding = EMAEmbedding(n_embed, embedding_dim, decay, eps)
        self.set_remap(remap, unknown_index, n_embed)

    def forward(self, z):
        rows, book = last(z), self.embedding
        indices = nearest(rows, book.weight)
        quantized = book.weight[indices]
        loss = self.beta * errors(rows, quantized)[0]
        flat = indices.flatten()
        if self.training:
            follow(book.weight, book.cluster_size, book.embed_avg, rows.detach().flatten(0, -2), flat, book.decay, book.eps)
        found = flat if self.remap is None else self.to_used(flat)[:, None]
        extras = perplexity(flat, self.num_tokens), F.one_hot(flat, self.num_tokens).float(), found
        return passed(rows, quantized).movedim(-1, 1), loss, extras


class EncodecBook(nn.Module):
    def __init__(self, dim, size, decay, epsilon, threshold):
        super().__init__()
        self.decay, self.epsilon, self.kmeans_iters, self.threshold_ema_dead_code, self.codebook_size = decay, epsilon, 10, threshold, size
        self.register_buffer("inited", torch.ones(1))
        self.register_buffer("cluster_size", torch.zeros(size))
        self.register_buffer("embed", torch.randn(size, dim))
        self.register_buffer("embed_avg", self.embed.clone())

    def forward(self, x):
        indices = nearest(x, self.embed)
        quantized = self.embed[indices]
        if self.training:
            flat = x.detach().flatten(0, -2)
            follow(self.embed, self.cluster_size, self.embed_avg, flat, indices.flatten(), self.decay, self.epsilon)
        return quantized, indices


@copied("VectorQuantization", "encodec")
class Encodec(nn.Module):
    def __init__(self, dim, codebook_size, codebook_dim=None, decay=0.99, epsilon=1e-5, threshold_ema_dead_code=2, commitment_weight=1.0):
        super().__init__()
        length = codebook_dim or dim
        self.project_in = nn.Identity() if length == dim else nn.Linear(dim, length)
        self.project_out = nn.Identity() if length == dim else nn.Linear(length, dim)
        self.commitment_weight = commitment_weight
        self._codebook = EncodecBook(length, codebook_size, decay, epsilon, threshold_ema_dead_code)

    def forward(self, x):
        rows = self.project_in(x.mT)
        quantized, indices = self._codebook(rows)
        loss = torch.zeros(1)
        if self.training:
            loss = loss + self.commitment_weight * errors(rows, quantized)[0]
            quantized = passed(rows, quantized)
        return self.project_out(quantized).mT, indices, loss


@copied("VectorQuantize", "dac")
class Dac(nn.Module):
    def __init__(self, input_dim, codebook_size, codebook_dim, layer=nn.Conv1d):
        super().__init__()
        self.codebook_size, self.codebook_dim = codebook_size, codebook_dim
        self.in_proj, self.out_proj = layer(input_dim, codebook_dim, 1), layer(codebook_dim, input_dim, 1)
        self.codebook = nn.Embedding(codebook_size, codebook_dim)

    def decode_latents(self, latents):
        indices = nearest(F.normalize(latents.mT, dim=-1), F.normalize(self.codebook.weight, dim=-1))
        return self.codebook(indices).mT, indices

    def forward(self, z):
        latents = self.in_proj(z)
        quantized, indices = self.decode_latents(latents)
        commitment = (latents - quantized.detach()).square().mean((1, 2))
        codebook = (latents.detach() - quantized).square().mean((1, 2))
        return self.out_proj(passed(latents, quantized)), commitment, codebook, indices, latents


@copied("VectorQuantizer", "llamagen")
class LlamaGen(nn.Module):
    def __init__(self, n_e, e_dim, beta, entropy_loss_ratio, l2_norm, show_usage):
        super().__init__()
        self.n_e, self.e_dim, self.beta, self.entropy_loss_ratio = n_e, e_dim, beta, entropy_loss_ratio
        self.l2_norm, self.show_usage = l2_norm, show_usage
        self.embedding = nn.Embedding(n_e, e_dim)
        if show_usage:
            self.register_buffer("codebook_used", torch.zeros(65536))

    def forward(self, z):
        rows, codes = last(z), self.embedding.weight
        if self.l2_norm:
            rows, codes = F.normalize(rows, dim=-1), F.normalize(codes, dim=-1)
        flat = rows.flatten(0, -2)
        indices, used, losses = nearest(flat, codes), 0, (None, None, None)
        quantized = codes[indices].view_as(rows)
        if self.training:
            log_p = (-(flat[:, None] - codes).square().sum(-1) / 0.01).log_softmax(-1)
            mean = log_p.exp().mean(0)
            entropy = -(log_p.exp() * log_p).sum(-1).mean() + (mean * (mean + 1e-5).log()).sum()
            commitment, codebook = errors(rows, quantized)
            losses = codebook, self.beta * commitment, self.entropy_loss_ratio * entropy
            if self.show_usage:
                self.codebook_used.copy_(torch.cat([self.codebook_used[len(indices) :], indices.float()]))
                used = len(self.codebook_used.unique()) / self.n_e
        return passed(rows, quantized).movedim(-1, 1), (*losses, used), (None, None, indices)


@copied("VectorQuantiser", "cvq")
class Cvq(nn.Module):
    def __init__(self, num_embed, embed_dim, beta, distance="cos", anchor="probrandom", first_batch=False, contras_loss=False):
        super().__init__()
        self.num_embed, self.embed_dim, self.beta, self.distance, self.anchor = num_embed, embed_dim, beta, distance, anchor
        self.first_batch, self.contras_loss, self.decay, self.init = first_batch, contras_loss, 0.99, False
        self.embedding = nn.Embedding(num_embed, embed_dim)
        self.register_buffer("embed_prob", torch.zeros(num_embed))

    def forward(self, z, temp=None, rescale_logits=False, return_logits=False):
        rows = last(z)
        flat, codes = rows.flatten(0, -2), self.embedding.weight.clone()
        if self.distance == "cos":
            closeness = F.normalize(flat, dim=-1).detach() @ F.normalize(codes, dim=-1).T
        else:
            closeness = -(flat.detach()[:, None] - codes).square().sum(-1)
        indices = closeness.argmax(1)
        quantized = codes[indices].view_as(rows)
        commitment, codebook = errors(rows, quantized)
        loss = self.beta * commitment + codebook
        if self.training:
            share = torch.bincount(indices, minlength=self.num_embed) / len(indices)
            self.embed_prob.mul_(self.decay).add_(share, alpha=1 - self.decay)
            if not self.init:
                place = closeness.argmax(0) if self.anchor == "closest" else torch.multinomial(closeness.detach().T.softmax(1), 1)[:, 0]
                alpha = (-self.embed_prob * self.num_embed * 10 / (1 - self.decay) - 1e-3).exp()[:, None]
                self.embedding.weight.data = self.embedding.weight.data * (1 - alpha) + flat.detach()[place] * alpha
                self.init = self.first_batch
            if self.contras_loss:
                ranked = closeness.sort(dim=0).values
                positive = ranked[-max(1, len(flat) // self.num_embed) :].mean(0, keepdim=True)
                logits = torch.cat([positive, ranked[: len(flat) // 2]]).T / 0.07
                loss = loss + F.cross_entropy(logits, torch.zeros(self.num_embed, dtype=torch.long))
        extras = perplexity(indices, self.num_embed), F.one_hot(indices, self.num_embed).float(), indices
        return passed(rows, quantized).movedim(-1, 1), loss, extras


@copied("VectorQuantizer", "vit_vqgan")
class VitVqgan(nn.Module):
    def __init__(self, embed_dim, n_embed, beta=0.25, use_norm=True, use_residual=False, num_quantizers=None):
        super().__init__()
        self.embed_dim, self.n_embed, self.beta, self.use_residual, self.num_quantizers = embed_dim, n_embed, beta, use_residual, num_quantizers
        self.norm = lambda x: F.normalize(x, dim=-1) if use_norm else x
        self.embedding = nn.Embedding(n_embed, embed_dim)

    def quantize(self, z):
        rows, codes = self.norm(z), self.norm(self.embedding.weight)
        indices = nearest(rows, codes)
        commitment, codebook = errors(rows, codes[indices])
        return codes[indices], self.beta * commitment + codebook, indices

    def forward(self, z):
        if not self.use_residual:
            quantized, loss, indices = self.quantize(z)
            return passed(z, quantized), loss, indices
        rest, found = z.detach(), []
        for _ in range(self.num_quantizers):
            found.append(self.quantize(rest))
            rest = rest - found[-1][0].detach()
        quantized, losses, indices = zip(*found)
        return passed(z, sum(quantized)), sum(losses) / len(losses), torch.stack(indices, -1)


@copied("EMAQuantizer", "monai")
class Monai(nn.Module):
    def __init__(self, spatial_dims, num_embeddings, embedding_dim, commitment_cost=0.25, decay=0.99, epsilon=1e-5, ddp_sync=True):
        super().__init__()
        self.spatial_dims, self.num_embeddings, self.embedding_dim = spatial_dims, num_embeddings, embedding_dim
        self.commitment_cost, self.decay, self.epsilon, self.ddp_sync = commitment_cost, decay, epsilon, ddp_sync
        self.embedding = nn.Embedding(num_embeddings, embedding_dim).requires_grad_(False)
        self.register_buffer("ema_cluster_size", torch.zeros(num_embeddings))
        self.register_buffer("ema_w", self.embedding.weight.data.clone())

    def forward(self, inputs):
        rows = last(inputs)
        indices = nearest(rows, self.embedding.weight)
        quantized = self.embedding(indices)
        loss = self.commitment_cost * errors(rows, quantized)[0]
        if self.training:
            flat = rows.detach().flatten(0, -2)
            follow(self.embedding.weight, self.ema_cluster_size, self.ema_w, flat, indices.flatten(), self.decay, self.epsilon)
        return passed(rows, quantized).movedim(-1, 1), loss, indices


class Phi(nn.Conv2d):
    def __init__(self, dim, ratio):
        super().__init__(dim, dim, 3, padding=1)
        self.ratio = ratio

    def forward(self, h):
        return h * (1 - self.ratio) + super().forward(h) * self.ratio


class OnePhi(nn.Module):
    def __init__(self, phi):
        super().__init__()
        self.qresi = phi


class SomePhi(nn.Module):
    def __init__(self, phis):
        super().__init__()
        self.qresi_ls = nn.ModuleList(phis)


@copied("VectorQuantizer2", "var")
class Var(nn.Module):
    def __init__(self, vocab_size, Cvae, using_znorm, beta=0.25, default_qresi_counts=0, v_patch_nums=None, quant_resi=0.5, share_quant_resi=4):
        super().__init__()
        self.vocab_size, self.Cvae, self.using_znorm, self.beta, self.v_patch_nums = vocab_size, Cvae, using_znorm, beta, v_patch_nums
        self.quant_resi_ratio, self.record_hit = quant_resi, 0
        count = share_quant_resi or default_qresi_counts or len(v_patch_nums)
        phis = [Phi(Cvae, quant_resi) for _ in range(count)]
        self.quant_resi = OnePhi(*phis) if share_quant_resi == 1 else SomePhi(phis) if share_quant_resi else nn.ModuleList(phis)
        self.embedding = nn.Embedding(vocab_size, Cvae)
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(v_patch_nums), vocab_size))

    def phi(self, scale):
        phis = [part for part in self.quant_resi.modules() if isinstance(part, Phi)]
        inset = 1 / (3 if len(phis) == 4 else 2) / len(phis)
        ticks = np.linspace(inset, 1 - inset, len(phis))
        return phis[int(np.abs(ticks - scale / (len(self.v_patch_nums) - 1)).argmin())]

    def forward(self, f, ret_usages=False):
        total, loss, size = torch.zeros_like(f), 0, f.shape[-1]
        for scale, p in enumerate(self.v_patch_nums):
            rest = (f - total).detach()
            rows = last(rest if p == size else F.interpolate(rest, size=(p, p), mode="area"))
            codes = self.embedding.weight
            found = nearest(F.normalize(rows, dim=-1), F.normalize(codes, dim=-1)) if self.using_znorm else nearest(rows, codes)
            h = self.embedding(found).movedim(-1, 1)
            h = h if p == size else F.interpolate(h, size=(size, size), mode="bicubic")
            total = total + self.phi(scale)(h)
            commitment, codebook = errors(f, total)
            loss = loss + self.beta * commitment + codebook
        return passed(f, total), None, loss / len(self.v_patch_nums)


