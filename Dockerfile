# Images with stn-infer for running ONNX files; there is no PyTorch in them.
#
#   docker build --target cpu -t stn-infer .
#   docker build --target gpu -t stn-infer:gpu .        # CUDA kernels for all GPUs; compiling them takes minutes
#   docker run --rm -v "$PWD:/data" stn-infer run model.onnx photos/ -o predictions/
#   docker run --rm --gpus all -v "$PWD:/data" stn-infer:gpu run model.onnx photos/ -o predictions/ --device cuda
#
# Files are written as the user in the image; add --user "$(id -u):$(id -g)" for your own.
ARG PYTHON=3.12

FROM python:${PYTHON}-bookworm AS source
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY plugins plugins
COPY stn_infer stn_infer

FROM source AS build-cpu
RUN SKBUILD_CMAKE_DEFINE=STN_CUDA=OFF pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && ls /wheels/*-linux_*.whl

FROM source AS build-gpu
# Not in constraints.txt, because PyTorch's wheels for CUDA ask for a cuda-runtime of their own.
RUN pip install --no-cache-dir "nvidia-cuda-nvcc==13.5.*" "nvidia-cuda-crt==13.5.*" "nvidia-nvvm==13.5.*" \
    "nvidia-cuda-runtime==13.5.*" "nvidia-cuda-cccl==13.3.*"
RUN SKBUILD_CMAKE_DEFINE="STN_CUDA=ON;STN_CUDA_ARCH=all" pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && ls /wheels/*-linux_*.whl

FROM python:${PYTHON}-slim-bookworm AS base
RUN useradd --create-home --uid 1000 stn && mkdir /data && chown stn /data
COPY constraints.txt /tmp/constraints.txt
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /data

FROM base AS gpu
# The driver comes from the host; CUDA and cuDNN are the packages that onnxruntime-gpu asks for.
RUN --mount=type=bind,from=build-gpu,source=/wheels,target=/wheels \
    pip install --constraint /tmp/constraints.txt "$(ls /wheels/*.whl)[gpu,gpu-log]" "onnxruntime-gpu[cuda,cudnn]"
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
ENTRYPOINT ["stn-infer"]
CMD ["--help"]

# The last stage is what `docker build` makes without --target.
FROM base AS cpu
RUN --mount=type=bind,from=build-cpu,source=/wheels,target=/wheels \
    pip install --constraint /tmp/constraints.txt "$(ls /wheels/*.whl)[cpu]"
USER 1000
ENTRYPOINT ["stn-infer"]
CMD ["--help"]
