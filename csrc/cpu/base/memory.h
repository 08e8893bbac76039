// The one owner of native memory: all blocks come from here.
//
// Three users keep released blocks for the next call, each by its own rule, because they are used differently:
// - blocks of 32 kB to 4 MB, always and up to 16 MB in all (below): they cost little and every call needs them;
// - results of 2 MB and more (results.h), only if their size recurs, as in training: they live as long as a tensor;
// - one block of scratch memory (scratch.h), only if calls do not grow: a smaller picture reuses a larger one's.
// The last two are in large pages, marked as free for the system to take back.
//
// If memory runs out, an allocation throws std::bad_alloc, in kernels too. Threads pass it to the call that they work
// for (first_error.h). The call ends with an error, and the process goes on.
#pragma once
#include <cstdint>

namespace ffmef {

// Throws a std::bad_alloc that says how much was wanted.
[[noreturn]] void out_of_memory(int64_t bytes);

// Uninitialised values that begin at a cache line, so a vector at a multiple of its length lies within one.
//
// Keeps up to 16 MB of released blocks of 32 kB to 4 MB for the next call. The C library may return freed memory to the
// system. Getting a small picture's pages again takes a fifth of the time of fusing it.
void* allocate(int64_t bytes);
void release(void* data);

// Asks for huge pages under a large, fresh allocation. In pages of 4 kB, touching a gradient of 100 MB for the first
// time costs several times more than computing it. This is only a hint: a refusal changes nothing.
void hint_huge_pages(void* data, int64_t bytes);

// Whole blocks of large pages, for memory that is kept from call to call.
//
// The system clears a page when it is first touched, and in a virtual machine the host often has to find the page
// first. For large pictures that took as long as the computation. Such blocks are therefore kept but marked as free,
// and the system takes their pages back whenever it needs them.
constexpr int64_t kLargePage = int64_t(2) << 20;
inline int64_t whole_large_pages(int64_t bytes) { return (bytes + kLargePage - 1) / kLargePage * kLargePage; }

// Uninitialised memory that begins at a large page; `bytes` is a multiple of a large page. Throws std::bad_alloc.
void* map_large(int64_t bytes);
void unmap_large(void* data, int64_t bytes);
// Lets the system take the pages of a block until they are written again. Returns false if it cannot.
bool lend_large(void* data, int64_t bytes);
// The most that may be lent: a quarter of the machine's memory, or nothing if blocks cannot be lent.
int64_t most_to_lend();

}  // namespace ffmef
