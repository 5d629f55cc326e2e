# The plugin with fairseq's commands and CTranslate2 on a CPU:
#   docker build -t taskmoe .
#   docker run --rm -v "$PWD:/work" taskmoe bash -c 'fairseq-train data-bin --user-dir "$(taskmoe user-dir)" ...'
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/taskmoe
ENV PATH=/opt/taskmoe/bin:$PATH
# PyTorch first, from its index of CPU builds: pip then has no reason to fetch CUDA libraries.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.1,<2.14"
COPY . /src
RUN pip install --no-cache-dir "/src[ctranslate2,plot]"

FROM python:3.11-slim
COPY --from=build /opt/taskmoe /opt/taskmoe
ENV PATH=/opt/taskmoe/bin:$PATH
WORKDIR /work
CMD ["taskmoe", "--help"]
