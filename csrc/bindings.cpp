// Python's view: integers in (addresses, sizes, the stream), exceptions out. vqkit/native.py checks the tensors.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>

#include "aggregate.hpp"
#include "isa.hpp"
#include "nearest.hpp"
#ifdef VQKIT_WITH_CUDA
#include "nearest_cuda.hpp"
#endif
#include "statistics.hpp"
#include "straight_through.hpp"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using Size = std::int64_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
void nearest_codes(Address latents, Address codes, Size heads, Size rows, Size code_count, Size dim, int ranks, bool cosine, bool exact,
                   bool bfloat16, int threads, Address distances, Address indices) {
  vqkit::nearest_codes<T>({at<T>(latents), at<T>(codes), rows, code_count, dim, ranks, cosine, exact, bfloat16, threads, at<T>(distances),
                           at<Size>(indices)}, heads);
}

template <class T>
vqkit::Selection<T> selection(Address latents, Address codes, Address indices, Size rows, Size dim, Size code_count, Size width, int threads) {
  return {at<T>(latents), at<T>(codes), at<Size>(indices), rows, dim, code_count, width, threads};
}

template <class T>
double straight_through(Address latents, Address codes, Address indices, Size rows, Size dim, Size code_count, Size width, int threads,
                        Address quantized) {
  return vqkit::straight_through(selection<T>(latents, codes, indices, rows, dim, code_count, width, threads), at<T>(quantized));
}

template <class T>
void straight_through_backward(Address latents, Address codes, Address indices, Size rows, Size dim, Size code_count, Size width, int threads,
                               Address grad_quantized, double grad_commitment, double grad_codebook, bool rotation, Address grad_latents,
                               Address grad_codes) {
  vqkit::straight_through_backward(selection<T>(latents, codes, indices, rows, dim, code_count, width, threads), at<T>(grad_quantized),
                                   {grad_commitment, grad_codebook, rotation}, at<T>(grad_latents), at<T>(grad_codes));
}

template <class T>
void code_statistics(Address latents, Address indices, Size rows, Size dim, Size codebook_size, int threads, Address sums, Address counts) {
  vqkit::code_statistics(at<T>(latents), at<Size>(indices), rows, dim, codebook_size, threads, at<T>(sums), at<Size>(counts));
}

template <class T>
void aggregate(Address offsets, Address neighbours, Address weights, Size nodes, Size edges, Address features, Size feature_rows, Size width,
               int threads, Address out) {
  vqkit::aggregate<T>({at<Size>(offsets), at<Size>(neighbours), at<T>(weights), nodes, edges}, at<T>(features), feature_rows, width, threads,
                      at<T>(out));
}

template <class T>
void bind(py::module_& module, const std::string& type) {
  const auto define = [&](const char* name, auto function) {
    module.def((name + ("_" + type)).c_str(), function, py::call_guard<py::gil_scoped_release>());
  };
  define("nearest_codes", nearest_codes<T>);
  define("straight_through", straight_through<T>);
  define("straight_through_backward", straight_through_backward<T>);
  define("code_statistics", code_statistics<T>);
  define("aggregate", aggregate<T>);
}

#ifdef VQKIT_WITH_CUDA
vqkit::CudaNearestProblem cuda_problem(const std::string& type, Size rows, Size code_count, Size dim, int ranks, bool cosine, bool exact,
                                       int device) {
  vqkit::CudaNearestProblem problem{};
  problem.type = type == "float32"   ? vqkit::CudaType::float32
                 : type == "float16" ? vqkit::CudaType::float16
                                     : vqkit::CudaType::bfloat16;
  problem.rows = rows;
  problem.code_count = code_count;
  problem.dim = dim;
  problem.ranks = ranks;
  problem.cosine = cosine;
  problem.exact = exact;
  problem.device = device;
  return problem;
}

void bind_cuda(py::module_& module) {
  py::class_<vqkit::CudaNearestProblem>(module, "CudaNearestProblem")
      .def(py::init(&cuda_problem), py::arg("type"), py::arg("rows"), py::arg("code_count"), py::arg("dim"), py::arg("ranks"), py::arg("cosine"),
           py::arg("exact"), py::arg("device"))
      .def_readwrite("stream", &vqkit::CudaNearestProblem::stream)
      .def_readwrite("workspace", &vqkit::CudaNearestProblem::workspace)
      .def_readwrite("latents", &vqkit::CudaNearestProblem::latents)
      .def_readwrite("codes", &vqkit::CudaNearestProblem::codes)
      .def_readwrite("distances", &vqkit::CudaNearestProblem::distances)
      .def_readwrite("indices", &vqkit::CudaNearestProblem::indices);
  module.def("cuda_nearest_workspace", vqkit::cuda_nearest_workspace);
  module.def("cuda_nearest_codes", vqkit::cuda_nearest_codes, py::call_guard<py::gil_scoped_release>());
  module.def("cuda_refusal", vqkit::cuda_refusal);
}
#endif

std::map<std::string, std::string> build() {
  std::map<std::string, std::string> facts = {
      {"compiler", __VERSION__}, {"cuda_architectures", VQKIT_CUDA_BUILT}, {"cuda_reason", VQKIT_CUDA_REASON}};
#ifdef _OPENMP
  facts["openmp"] = std::to_string(_OPENMP);
#else
  facts["openmp"] = "";
#endif
  return facts;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.def("build", build);
  module.def("isa", [] { return std::string(vqkit::isa_name(vqkit::choose_isa())); });
  bind<float>(module, "float");
  bind<double>(module, "double");
#ifdef VQKIT_WITH_CUDA
  bind_cuda(module);
#endif
}
