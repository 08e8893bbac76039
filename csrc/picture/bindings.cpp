// Binds the fusion of pictures to Python through NumPy arrays, without torch: checks, results, threads.
#include "fuse.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>

#include "../cpu/base/memory.h"
#include "pool.h"

namespace py = pybind11;

namespace ffmef {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Mask = std::optional<py::array_t<uint8_t, py::array::c_style>>;

// A predictor with its parameters. Other threads may use it at the same time.
class Network {
 public:
  Network(const std::vector<Floats>& parameters, const std::vector<int64_t>& channels, int64_t stem, int64_t bands,
          int octaves)
      : octaves_(octaves) {
    if (bands != 3) throw std::invalid_argument("bands must be 3, got " + std::to_string(bands));
    if (octaves_ < 0 || octaves_ > 16)
      throw std::invalid_argument("octaves must be 0 to 16, got " + std::to_string(octaves_));
    std::vector<Parameter> plain;
    for (const Floats& parameter : parameters) {
      values_.emplace_back(parameter.data(), parameter.data() + parameter.size());
      plain.push_back({values_.back().data(), int64_t(values_.back().size())});
    }
    net_ = network_of(plain, channels, stem, bands);
  }
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  py::array fuse(const std::vector<py::array>& images, int threads, const std::vector<Mask>& validity,
                 const std::array<double, 4>& adjust) const {
    if (threads < 1) throw std::invalid_argument("threads must be at least 1, got " + std::to_string(threads));
    std::vector<py::array> kept;
    const Pictures pictures = pictures_of(images, kept);
    const Exposures exposures{pictures, masks_of(validity, pictures)};
    std::vector<py::ssize_t> shape{pictures.height, pictures.width};
    if (pictures.coloured()) shape.push_back(3);
    py::array out = result_of(images[0].dtype(), shape);
    void* data = out.mutable_data();
    hint_huge_pages(data, int64_t(out.nbytes()));
    const py::gil_scoped_release release;
    Team::run(pool_crew(threads), [&](Team& team) {
      fuse_exposures(net_, exposures, octaves_, {adjust[0], adjust[1], adjust[2], adjust[3]}, data, team);
    });
    return out;
  }

 private:
  // An array whose memory the next result may reuse.
  static py::array result_of(const py::dtype& dtype, const std::vector<py::ssize_t>& shape) {
    py::ssize_t bytes = dtype.itemsize();
    for (py::ssize_t size : shape) bytes *= size;
    void* data = allocate(bytes);
    const py::capsule owner(data, [](void* p) { release(p); });
    return py::array(dtype, shape, data, owner);
  }

  // The public function explains mistakes. These checks only keep memory safe.
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

  std::vector<const uint8_t*> masks_of(const std::vector<Mask>& validity, const Pictures& pictures) const {
    std::vector<const uint8_t*> masks;
    if (validity.empty()) return masks;
    if (int64_t(validity.size()) != pictures.count())
      throw std::invalid_argument("validity must hold an array or None for each picture");
    for (const Mask& mask : validity) {
      if (mask && (mask->ndim() != 2 || mask->shape(0) != pictures.height || mask->shape(1) != pictures.width))
        throw std::invalid_argument("validity must be (H, W) of the pictures' size");
      masks.push_back(mask ? mask->data() : nullptr);
    }
    return masks;
  }

  static Sample sample_of(const py::array& image) {
    if (py::isinstance<py::array_t<uint8_t>>(image)) return Sample::u8;
    if (py::isinstance<py::array_t<uint16_t>>(image)) return Sample::u16;
    if (py::isinstance<py::array_t<float>>(image)) return Sample::f32;
    throw std::invalid_argument("images must be uint8, uint16 or float32");
  }

  std::vector<std::vector<float>> values_;
  int octaves_;
  PredictNetwork net_;
};

}  // namespace
}  // namespace ffmef

PYBIND11_MODULE(_picture, m) {
  using ffmef::Network;
  m.doc() = "Fusion of pictures without torch.";
  m.def("processors", &ffmef::processors, "Return the number of processors that this process may run on.");
  m.def("isa", [] { return ffmef::isa_name(ffmef::active_isa()); }, "Return the instruction set of the kernels here.");
  py::register_exception<ffmef::OutOfRange>(m, "OutOfRange", PyExc_ValueError);
  py::class_<Network>(m, "Network", "The predictor of a PyramidFFMEF with its parameters.")
      .def(py::init<const std::vector<ffmef::Floats>&, const std::vector<int64_t>&, int64_t, int64_t, int>(),
           py::arg("parameters"), py::arg("channels"), py::arg("stem"), py::arg("bands"), py::arg("octaves"))
      .def("fuse", &Network::fuse, py::arg("images"), py::arg("threads"),
           py::arg("validity") = std::vector<ffmef::Mask>{}, py::arg("adjust") = std::array<double, 4>{},
           "Return the fused picture of arrays (H, W) or (H, W, 3) of one size and dtype.");
}
