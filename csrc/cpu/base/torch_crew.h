// Torch's threads, as many as torch.set_num_threads says, for teams.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "team.h"

namespace ffmef {

inline Crew torch_crew() {
  return {int(torch::stable::get_num_threads()), [](int threads, void* context, void (*job)(void*, int)) {
            torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
              for (int64_t thread = begin; thread < end; ++thread) job(context, int(thread));
            });
          }};
}

}  // namespace ffmef
