/* What the C interfaces of all operators share: codes of element types, and the text of an error. */
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

enum { FFMEF_FLOAT32 = 0, FFMEF_FLOAT16 = 1, FFMEF_BFLOAT16 = 2, FFMEF_FLOAT64 = 3 };

const char* ffmef_cuda_error_text(int error);

#ifdef __cplusplus
}
#endif
