# Included by llama.cpp's project: many small files are compiled as few large ones, which takes half of the time.
# Two cannot be: a header of mtmd's forbids it, and json.cpp specialises what others have used by then.
set(CMAKE_UNITY_BUILD ON)
set(CMAKE_UNITY_BUILD_BATCH_SIZE 12)
cmake_language(DEFER CALL set_target_properties mtmd PROPERTIES UNITY_BUILD OFF)
cmake_language(DEFER CALL set_source_files_properties "${CMAKE_CURRENT_SOURCE_DIR}/common/json.cpp"
               TARGET_DIRECTORY llama-common PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
