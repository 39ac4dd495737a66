// See cublas_v2.h.
#pragma once
using cusolverDnHandle_t = struct cusolverDnContext*;
