# docker build --target cpu --build-arg TORCH_INDEX=ADDRESS --tag onerec:cpu .     ADDRESS: PyTorch's index of CPU builds
# docker build --target cuda --tag onerec:cuda .
# docker run --rm onerec:cpu make test
# docker build --target serve --build-arg DEVICE=cpu --build-arg TORCH_INDEX=ADDRESS --tag onerec:serve .
# docker run --publish 8000:8000 --volume FOLDER:/app/runs/demo onerec:serve    FOLDER: has bundle/, user 1000 may write
#
# The steps are the README's own: a compiler and make, then `make install`. Without TORCH_INDEX torch is the build of the
# default index, which on Linux usually brings the CUDA libraries with it; the host then needs only the driver.

ARG DEVICE=cpu
FROM python:3.11-slim AS system
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 onerec \
    && install --directory --owner onerec /app /app/runs /app/results
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /app
USER onerec

# The environment depends on these files alone, so a change of code does not install it again.
FROM system AS environment
COPY --chown=onerec Makefile pyproject.toml README.md LICENSE ./
ARG TORCH_INDEX=""
RUN make install TORCH_INDEX="${TORCH_INDEX}"

FROM system AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=environment --chown=onerec /app/.venv .venv
COPY --chown=onerec . .
CMD ["make", "help"]

FROM system AS cpu
COPY --from=environment --chown=onerec /app/.venv .venv
COPY --chown=onerec . .
CMD ["make", "help"]

# /healthz, not /readyz: to start the server anew brings no Redis back, and no room on a disk.
FROM ${DEVICE} AS serve
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=2m \
    CMD [".venv/bin/python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD [".venv/bin/python", "serve.py", "--bundle", "runs/demo/bundle", "--host", "0.0.0.0", "--logs", "json"]
