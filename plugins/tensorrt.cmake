# The TensorRT adapter: plugin creators in stn_plugins, the library that registers them when it is loaded, and
# the host that runs them in the tests. None of these links TensorRT.
set(TENSORRT_INCLUDE_DIR "" CACHE PATH "Folder of the official TensorRT headers; empty: use the declarations in abi/")

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

# Installed in the same folder as stn_plugins, and loads it from there.
add_library(stn_plugins_register SHARED ${CMAKE_CURRENT_LIST_DIR}/src/register/register.cpp)
target_compile_options(stn_plugins_register PRIVATE ${STN_WARNINGS})
target_link_libraries(stn_plugins_register PRIVATE ${CMAKE_DL_LIBS})
stn_use_tensorrt_interface(stn_plugins_register)
if(NOT STN_CUDA STREQUAL "CPU")
  install(TARGETS stn_plugins_register LIBRARY DESTINATION stn_infer/lib)
endif()

add_executable(tensorrt_host EXCLUDE_FROM_ALL ${CMAKE_CURRENT_LIST_DIR}/tests/tensorrt_host.cpp)
target_compile_options(tensorrt_host PRIVATE ${STN_WARNINGS})
target_include_directories(tensorrt_host PRIVATE ${CMAKE_CURRENT_LIST_DIR}/include)
target_link_libraries(tensorrt_host PRIVATE ${CMAKE_DL_LIBS})
stn_use_tensorrt_interface(tensorrt_host)
if(STN_TESTS)
  set_target_properties(tensorrt_host PROPERTIES EXCLUDE_FROM_ALL OFF)
  add_test(NAME tensorrt_host COMMAND tensorrt_host $<TARGET_FILE:stn_plugins>)
endif()
