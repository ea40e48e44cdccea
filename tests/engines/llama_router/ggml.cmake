# Included by ggml's project: the arithmetic alone is optimised.
set(CMAKE_UNITY_BUILD OFF)
add_compile_options(-O2)
