# docker build -f docker/cuda.Dockerfile -t mrcnn-jax:cuda .
# docker run --rm --gpus all -v "$PWD:/data" mrcnn-jax:cuda train --config=light_mask_rcnn --config.data.root=/data
# The CUDA libraries come from pip; the host needs NVIDIA's driver and container toolkit.
FROM python:3.12-slim
COPY . /src
RUN pip install --no-cache-dir --constraint /src/constraints.txt "/src[cuda,light,serve]" && rm -r /src
# Weights and compiled programs stay beside the data.
ENV MRCNN_JAX_CACHE=/data/.cache/mrcnn_jax
WORKDIR /data
ENTRYPOINT ["mrcnn"]
