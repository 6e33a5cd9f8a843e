# TensorRT's part of the library: three plugin creators in stn_plugins, the library that registers them by itself
# when it is loaded, and the host that drives them in the tests. Nothing here links TensorRT.
set(TENSORRT_INCLUDE_DIR "" CACHE PATH "Folder of TensorRT's own headers; empty: the slice in abi/ is used")

function(stn_use_tensorrt_interface target)
  if(TENSORRT_INCLUDE_DIR)
    find_package(CUDAToolkit REQUIRED) # NvInferRuntime.h includes cuda_runtime_api.h
    target_include_directories(${target} SYSTEM PRIVATE ${TENSORRT_INCLUDE_DIR} ${CUDAToolkit_INCLUDE_DIRS})
    target_compile_definitions(${target} PRIVATE STN_OFFICIAL_TENSORRT_HEADERS)
  endif()
endfunction()

target_sources(
  stn_plugins
  PRIVATE ${CMAKE_CURRENT_LIST_DIR}/src/adapters/tensorrt.cpp
          ${CMAKE_CURRENT_LIST_DIR}/src/adapters/tensorrt_config.cpp
          ${CMAKE_CURRENT_LIST_DIR}/src/adapters/tensorrt_plugin.cpp
          ${CMAKE_CURRENT_LIST_DIR}/src/adapters/tensorrt_problem.cpp)
stn_use_tensorrt_interface(stn_plugins)
