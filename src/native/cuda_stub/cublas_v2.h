// libtorch's CUDAContextLight.h declares functions that give these libraries' handles, and so includes their headers;
// nothing here calls one. Where the real headers are there, they are found first.
#pragma once
using cublasHandle_t = struct cublasContext*;
enum cublasStatus_t : int;
