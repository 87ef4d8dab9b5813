// A STUB for tests: not NVIDIA's header. It declares the one name of CUDA that the plugin's interface mentions.
#pragma once
typedef struct CUstream_st* cudaStream_t;
