// Our own threads, kept between calls, for processes that do not load torch.
#pragma once
#include "../cpu/base/team.h"

namespace ffmef {

// Returns a crew of `threads` threads, including the calling one. While another call uses the pool, the crew is the
// calling thread alone; the result is the same. A forked process gets its own pool.
Crew pool_crew(int threads);

// Returns the number of processors that this process may run on, at least 1.
int processors();

}  // namespace ffmef
