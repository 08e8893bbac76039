// Binds the fusion of pictures to Python by NumPy arrays, without torch: checks, results, threads.
#include "fuse.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "../cpu/base/memory.h"
#include "pool.h"

namespace py = pybind11;

namespace ffmef {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

// A predictor with its parameters, which other threads may use at the same time.
class Network {
 public:
  Network(const std::vector<Floats>& parameters, const std::vector<int64_t>& channels, int64_t stem, int64_t bands) {
    if (bands < 1) throw std::invalid_argument("bands must be at least 1");
    std::vector<Parameter> plain;
    for (const Floats& parameter : parameters) {
      values_.emplace_back(parameter.data(), parameter.data() + parameter.size());
      plain.push_back({values_.back().data(), int64_t(values_.back().size())});
    }
    net_ = network_of(plain, channels, stem, bands);
  }
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  py::array fuse(const std::vector<py::array>& images, int threads) const {
    if (threads < 1) throw std::invalid_argument("threads must be at least 1, got " + std::to_string(threads));
    std::vector<py::array> kept;
    const Pictures pictures = pictures_of(images, kept);
    std::vector<py::ssize_t> shape{pictures.height, pictures.width};
    if (pictures.coloured()) shape.push_back(3);
    py::array out(images[0].dtype(), shape);
    void* data = out.mutable_data();
    hint_huge_pages(data, int64_t(out.nbytes()));
    const py::gil_scoped_release release;
    Team::run(pool_crew(threads), [&](Team& team) { fuse_pictures(net_, pictures, data, team); });
    return out;
  }

 private:
  // The public function explains mistakes; these checks only keep memory safe.
  static Pictures pictures_of(const std::vector<py::array>& images, std::vector<py::array>& kept) {
    if (images.empty()) throw std::invalid_argument("images must hold at least one picture");
    const py::array& first = images[0];
    Pictures pictures{
        sample_of(first), first.ndim() > 1 ? first.shape(0) : 0, first.ndim() > 1 ? first.shape(1) : 0, {}};
    for (const py::array& image : images) {
      const bool grey = image.ndim() == 2, colour = image.ndim() == 3 && image.shape(2) == 3;
      if (!(grey || colour) || image.shape(0) != pictures.height || image.shape(1) != pictures.width ||
          image.size() == 0 || sample_of(image) != pictures.sample)
        throw std::invalid_argument("images must be (H, W) or (H, W, 3) of one size and dtype");
      kept.push_back(py::array::ensure(image, py::array::c_style));
      pictures.views.push_back({kept.back().data(), grey ? 1 : 3});
    }
    return pictures;
  }

  static Sample sample_of(const py::array& image) {
    if (py::isinstance<py::array_t<uint8_t>>(image)) return Sample::u8;
    if (py::isinstance<py::array_t<uint16_t>>(image)) return Sample::u16;
    if (py::isinstance<py::array_t<float>>(image)) return Sample::f32;
    throw std::invalid_argument("images must be uint8, uint16 or float32");
  }

  std::vector<std::vector<float>> values_;
  PredictNetwork net_;
};

}  // namespace
}  // namespace ffmef

PYBIND11_MODULE(_picture, m) {
  using ffmef::Network;
  m.doc() = "Fusion of pictures without torch.";
  m.def("processors", &ffmef::processors, "Return the number of processors that this process may run on.");
  m.def("isa", [] { return ffmef::isa_name(ffmef::active_isa()); }, "Return the instruction set of the kernels here.");
  py::class_<Network>(m, "Network", "The predictor of a PyramidFFMEF with its parameters.")
      .def(py::init<const std::vector<ffmef::Floats>&, const std::vector<int64_t>&, int64_t, int64_t>(),
           py::arg("parameters"), py::arg("channels"), py::arg("stem"), py::arg("bands"))
      .def("fuse", &Network::fuse, py::arg("images"), py::arg("threads"),
           "Return the fused picture of arrays (H, W) or (H, W, 3) of one size and dtype.");
}
