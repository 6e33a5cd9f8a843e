# Which GPUs the CUDA kernels are compiled for. As a script it prints the list, for the tests:
#
#   cmake -DREQUESTED=all "-DKNOWN=80;90;100" [-DNATIVE=90-real] -P cuda_architectures.cmake
cmake_minimum_required(VERSION 3.24)

# Every desktop and data-center GPU from Turing on, and Orin (87), which runs no code of 86. Code of 100 also runs on 103,
# and code of 120 on 121.
set(STN_EVERY_ARCHITECTURE 75 80 86 87 89 90 100 120)
# PTX, from which a driver compiles code for GPUs that are newer: that of 90 for those between 90 and 120, such as 110.
set(STN_PTX_ARCHITECTURES 90)

# Sets `result` to the value of CUDA_ARCHITECTURES, or `problem` to a sentence.
#   requested  all, native or a list such as 80;90
#   native     the GPUs of this machine, such as 90-real; empty: there is none, and native is all
#   known      the numbers that nvcc compiles for; empty: not known
function(stn_cuda_architectures result problem requested native known)
  set(list "")
  set(${problem} "" PARENT_SCOPE)
  if(NOT known)
    set(known ${STN_EVERY_ARCHITECTURE})
  endif()
  list(SORT known COMPARE NATURAL)
  list(GET known -1 newest_known)
  if(requested STREQUAL "native" AND native STREQUAL "")
    set(requested all)
  endif()
  if(requested STREQUAL "all")
    foreach(number ${STN_EVERY_ARCHITECTURE})
      if(number IN_LIST known)
        list(APPEND list ${number})
      endif()
    endforeach()
    list(GET list -1 newest)
    list(TRANSFORM list APPEND "-real")
    foreach(number ${STN_PTX_ARCHITECTURES} ${newest})
      list(TRANSFORM list REPLACE "^${number}-real$" "${number}")
    endforeach()
    set(${result} "${list}" PARENT_SCOPE)
    return()
  endif()
  if(requested STREQUAL "native")
    list(TRANSFORM native REPLACE "-real$" "" OUTPUT_VARIABLE requested)
    list(REMOVE_DUPLICATES requested)
    set(whose " (of this machine)")
  endif()
  foreach(architecture ${requested})
    string(REGEX MATCH "^[0-9]+" number "${architecture}")
    if(number IN_LIST known)
      list(APPEND list ${architecture})
    elseif(whose AND number GREATER newest_known)
      list(APPEND list "${newest_known}-virtual")
    else()
      list(TRANSFORM known PREPEND "sm" OUTPUT_VARIABLE names)
      list(JOIN names ", " names)
      set(${problem} "nvcc compiles for ${names}, not for sm${architecture}${whose}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  list(REMOVE_DUPLICATES list)
  set(${result} "${list}" PARENT_SCOPE)
endfunction()

if(CMAKE_SCRIPT_MODE_FILE STREQUAL CMAKE_CURRENT_LIST_FILE)
  stn_cuda_architectures(architectures problem "${REQUESTED}" "${NATIVE}" "${KNOWN}")
  message("${architectures}${problem}")
endif()
