"""transformers' EnCodec: the residual quantizer of an audio codec.

    model = EncodecModel.from_pretrained("facebook/encodec_24khz")
    + vqkit.accelerate(model)

    python examples/accelerate_encodec.py

builds a small EncodecModel from a configuration, so that nothing is downloaded, and encodes one second of noise before and after.
"""

import argparse
import copy

import torch
from comparison import report, timed
from transformers import EncodecConfig, EncodecModel

import vqkit

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    before = EncodecModel(EncodecConfig(num_filters=8, hidden_size=64, codebook_dim=64, codebook_size=1024, num_lstm_layers=1,
                                        upsampling_ratios=[8, 5, 4, 2])).eval()
    for layer in before.quantizer.layers:
        # Trained codes differ from one another; fresh ones are all zero.
        torch.nn.init.normal_(layer.codebook.embed)
    after = copy.deepcopy(before)
    print(vqkit.accelerate(after))
    sound = torch.randn(2, 1, int(24_000 * arguments.seconds))
    with torch.no_grad():
        codes, same = before.encode(sound, bandwidth=24.0).audio_codes, after.encode(sound, bandwidth=24.0).audio_codes
        print(f"{(codes == same).double().mean():.4%} of {codes.numel():,} codes are equal")
        states = before.encoder(sound)
        report(timed(lambda: before.quantizer.encode(states, 24.0).sum(), arguments.steps),
               timed(lambda: after.quantizer.encode(states, 24.0).sum(), arguments.steps))
