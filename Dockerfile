# The plugin with fairseq's commands and CTranslate2 on a CPU:
#   docker build -t taskmoe .    # add --build-arg TORCH_INDEX=URL for an index of CPU builds, which are much smaller
#   docker run --rm -v "$PWD:/data" taskmoe bash -c 'fairseq-train data-bin --user-dir "$(taskmoe user-dir)" ...'
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/taskmoe
ENV PATH=/opt/taskmoe/bin:$PATH
# PyTorch first: with an index of CPU builds, pip then has no reason to fetch CUDA libraries.
ARG TORCH_INDEX
RUN ${TORCH_INDEX:+env PIP_INDEX_URL=$TORCH_INDEX} pip install --no-cache-dir "torch>=2.6,<2.14"
COPY . /src
RUN pip install --no-cache-dir "/src[ctranslate2,plot]"

FROM python:3.11-slim
COPY --from=build /opt/taskmoe /opt/taskmoe
ENV PATH=/opt/taskmoe/bin:$PATH
WORKDIR /data
CMD ["taskmoe", "--help"]
