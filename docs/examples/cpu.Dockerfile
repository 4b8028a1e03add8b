# prunebench for CPUs, from the folder of a checkout:
#
#   docker build --file docs/examples/cpu.Dockerfile --tag prunebench .
#   docker run --rm --volume "$PWD/results:/home/user/results" prunebench run --methods laco,slicegpt --ratio 0.3
#
# Models, texts and tasks are fetched on the first run; --volume prunebench-cache:/home/user/.cache keeps them.
# Checked by hadolint, and not built: that takes a builder.
FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY bench bench
COPY methods methods
COPY reports reports
RUN pip install --no-cache-dir . --extra-index-url https://download.pytorch.org/whl/cpu \
    && useradd --create-home --uid 1000 user \
    && mkdir --parents /home/user/results /home/user/.cache \
    && chown --recursive user /home/user

USER 1000
WORKDIR /home/user
ENTRYPOINT ["python", "-m", "bench"]
CMD ["--help"]
