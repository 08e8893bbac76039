// Torch's threads, as many as torch.set_num_threads says: for teams, and for loops of independent items.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "first_error.h"
#include "team.h"

namespace ffmef {

// f(begin, end) for parts of [0, items). Rethrows what a part throws, which must not cross torch's C interface.
template <class F> void parallel_for(int64_t items, int64_t grain, const F& f) {
  FirstError error;
  torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    if (!error.thrown()) error.guard([&] { f(begin, end); });
  });
  error.rethrow();
}

inline Crew torch_crew() {
  return {int(torch::stable::get_num_threads()), [](int threads, void* context, void (*job)(void*, int)) {
            parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
              for (int64_t thread = begin; thread < end; ++thread) job(context, int(thread));
            });
          }};
}

}  // namespace ffmef
