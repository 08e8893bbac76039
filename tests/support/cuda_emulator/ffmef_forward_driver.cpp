// Runs cases of ffmef_forward through its C interface in the emulator.
//
// ffmef_forward_driver CASES RESULTS reads and writes int64 and raw float32 as test_ffmef_forward_cuda.py has them.
#include "tensors.hpp"

#include "../../../csrc/cuda/ffmef_forward.cu"

#include <vector>

namespace {

void run(Reader& reader, std::ofstream& results) {
  Input<4> luminance;
  luminance.read(reader, sizeof(float));
  std::vector<int> sizes(static_cast<size_t>(reader.number()));
  for (int& size : sizes) size = static_cast<int>(reader.number());
  std::vector<Input<1>> tensors(static_cast<size_t>(reader.number()));
  std::vector<const float*> pointers;
  std::vector<int64_t> values;
  for (Input<1>& tensor : tensors) {
    tensor.read(reader, sizeof(float));
    pointers.push_back(static_cast<const float*>(tensor.pointer));
    values.push_back(tensor.shape[0]);
  }
  const ffmef_network network = {luminance.shape[0],
                                 luminance.shape[2],
                                 luminance.shape[3],
                                 static_cast<const float*>(luminance.pointer),
                                 static_cast<int64_t>(pointers.size()),
                                 pointers.data(),
                                 values.data(),
                                 static_cast<int>(sizes.size()),
                                 sizes.data(),
                                 0};
  Output output(network.batch * network.height * network.width, sizeof(float), 0);
  Memory workspace(static_cast<size_t>(ffmef_cuda_ffmef_forward_workspace(&network)), kSentinel);
  int status = -1;
  if (ffmef_cuda_ffmef_forward_fits(&network))
    status = ffmef_cuda_ffmef_forward(&network, static_cast<float*>(output.data()), workspace.data(), nullptr);
  workspace.check_red_zones();
  const int64_t held = ffmef_cuda_ffmef_forward_values(network.level_count, network.sizes);
  results.write(reinterpret_cast<const char*>(&status), sizeof(status));
  results.write(reinterpret_cast<const char*>(&held), sizeof(held));
  output.write(results);
}

}  // namespace

int main(int, char** arguments) { return run_cases(arguments, run); }
