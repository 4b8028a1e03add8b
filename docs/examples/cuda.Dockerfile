# prunebench for NVIDIA GPUs, from the folder of a checkout, where Docker has NVIDIA's container toolkit:
#
#   docker build --file docs/examples/cuda.Dockerfile --tag prunebench-cuda .
#   docker run --rm --gpus all --ipc host --volume "$PWD/results:/home/user/results" prunebench-cuda \
#     run --model meta-llama/Llama-2-7b-hf --methods laco,slicegpt --ratio 0.3 --device cuda
#
# torch brings its own CUDA libraries; a compiler is what torch.compile (--compile) asks for. Weights are fetched on the first run;
# --volume prunebench-cache:/home/user/.cache keeps them. Checked by hadolint, and not built: that takes a builder.
FROM python:3.12-slim

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm --recursive --force /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY bench bench
COPY methods methods
COPY reports reports
RUN pip install --no-cache-dir . \
    && useradd --create-home --uid 1000 user \
    && mkdir --parents /home/user/results /home/user/.cache \
    && chown --recursive user /home/user

USER 1000
WORKDIR /home/user
ENTRYPOINT ["python", "-m", "bench"]
CMD ["--help"]
