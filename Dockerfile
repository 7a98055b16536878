# The command `pretrain` in a container. On processors, and on GPUs from an image that has torch for CUDA:
#   docker build -t pretrain .
#   docker build -t pretrain --build-arg BASE=pytorch/pytorch:<tag of torch 2.13> .
# docs/guides/containers.md says how to run it.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS wheel
COPY . /source
RUN python3 -m pip wheel --no-deps --wheel-dir /wheel /source

FROM ${BASE}
# torch.compile calls a C++ compiler
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /constraints.txt
COPY --from=wheel /wheel /wheel
# an index beside pip's own, such as PyTorch's of torch for processors, with TORCH=2.13.0+cpu
ARG EXTRA_INDEX=
ARG TORCH=2.13.0
# the version of torch alone may differ from the pinned one; a base image that has it keeps its own
RUN sed -i "s/^torch==.*/torch==${TORCH}/" /constraints.txt \
    && python3 -m pip install --no-cache-dir ${EXTRA_INDEX:+--extra-index-url "$EXTRA_INDEX"} \
        --constraint /constraints.txt /wheel/pretrain-*.whl \
    && rm -rf /wheel
# any user may be given with `docker run --user`: caches and names need no account
ENV HOME=/tmp USER=pretrain
WORKDIR /work
# started as process 1, so a SIGTERM of `docker stop` reaches it: it saves and ends with 143
ENTRYPOINT ["pretrain"]
