// Our own threads, kept between calls, for processes that do not load torch.
#pragma once
#include "../cpu/base/team.h"

namespace ffmef {

// A crew of `threads` threads, including the caller. While another call uses the pool, a crew is the calling thread
// alone, which changes no result. A forked process gets its own pool.
Crew pool_crew(int threads);

// Processors that this process may run on, at least 1.
int processors();

}  // namespace ffmef
