# The course in a container: docker build -t galip . && docker run --rm -p 127.0.0.1:8888:8888 galip
# Then open the address with its token that is printed. Untested: no Docker where this was written; its commands are.
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /galip
COPY . .
# without a GPU, not gigabytes of accelerator libraries
ENV UV_TORCH_BACKEND=cpu
RUN make setup
EXPOSE 8888
CMD ["make", "lab", "HOST=0.0.0.0", "ARGS=--no-browser --allow-root"]
