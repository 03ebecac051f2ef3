// Stands for cuBLAS and cuSOLVER in the loader's test: versions, and nothing else.
#if defined(INGOT_FAKE_BLAS)
#define INGOT_PROPERTY cublasGetProperty
#else
#define INGOT_PROPERTY cusolverGetProperty
#endif

extern "C" int INGOT_PROPERTY(int part, int* number) {
  *number = 7 + part;
  return 0;
}
