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
void* allocate(int64_t bytes);
void release(void* data);

// Asks for huge pages under a large, fresh allocation. Touching a gradient of 100 MB for the first time in pages of
// 4 kB costs several times more than computing it. Only a hint: where it is refused nothing changes.
void hint_huge_pages(void* data, int64_t bytes);

}  // namespace ffmef
