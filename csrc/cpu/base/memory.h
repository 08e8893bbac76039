// The one owner of native memory.
//
// Where there is none left, an allocation throws std::bad_alloc, in kernels too: threads hand it to the call that they
// work for (first_error.h), which ends with an error. Nothing aborts.
#pragma once
#include <cstdint>

namespace ffmef {

// Throws std::bad_alloc, saying how much was wanted.
[[noreturn]] void out_of_memory(int64_t bytes);

// Undefined values from a cache line's boundary on, so that vectors at multiples of their length lie in one line.
//
// Up to 16 MB of released blocks of 32 kB to 4 MB are kept for the next call: the C library gives freed memory back to
// the system when it sees fit, and to get a small picture's pages again takes a fifth of the time of fusing it.
void* allocate(int64_t bytes);
void release(void* data);

// Asks for huge pages under a large, fresh allocation. Touching a gradient of 100 MB for the first time in pages of
// 4 kB costs several times more than computing it. Only a hint: where it is refused nothing changes.
void hint_huge_pages(void* data, int64_t bytes);

// Whole blocks of large pages, for memory that goes from call to call.
//
// The system clears a page when it is first touched, and in a virtual machine the host often has to find the page
// first: for large pictures that took as long as the computation. So such blocks are kept, but marked as free: the
// system takes their pages back whenever it needs them.
constexpr int64_t kLargePage = int64_t(2) << 20;
inline int64_t whole_large_pages(int64_t bytes) { return (bytes + kLargePage - 1) / kLargePage * kLargePage; }

// Undefined values from a large page's boundary on; `bytes` is a multiple of a large page. Throws std::bad_alloc.
void* map_large(int64_t bytes);
void unmap_large(void* data, int64_t bytes);
// Lets the system take the pages of a block until they are written again. False where it cannot.
bool lend_large(void* data, int64_t bytes);
// What may be lent at most: a quarter of the machine's memory; none where blocks cannot be lent.
int64_t most_to_lend();

}  // namespace ffmef
