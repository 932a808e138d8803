# nnU-Net with this package: docker build -t nnunet_ext . (docs/how_to/install.md says how it is run).
FROM python:3.11-slim
ENV PYTHONUNBUFFERED=1 \
    nnUNet_raw=/data/raw nnUNet_preprocessed=/data/preprocessed nnUNet_results=/data/results
# g++ builds E2ENet's engine for prediction on CPUs.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
# Where torch's wheels come from: without CUDA by default; --build-arg TORCH_INDEX= takes those of PyPI, with CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url $TORCH_INDEX} "torch>=2.6" torchvision
WORKDIR /opt/nnunet_ext
COPY . .
RUN pip install --no-cache-dir . \
 && useradd --create-home --uid 1000 user
USER 1000
WORKDIR /home/user
CMD ["nnunet_ext", "doctor"]
