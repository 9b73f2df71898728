# docker build --target cpu --build-arg TORCH_INDEX=ADDRESS --tag onerec:cpu .     ADDRESS: PyTorch's index of CPU builds
# docker build --target cuda --tag onerec:cuda .
# docker run --rm onerec:cpu make test
#
# The steps are the README's own: a compiler and make, then `make install`. Without TORCH_INDEX torch is the build of the
# default index, which on Linux usually brings the CUDA libraries with it; the host then needs only the driver.

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
