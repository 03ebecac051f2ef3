# Two steps: everything that builds, then the program and the libraries that it needs.
#   docker build -t ingot .
#   docker run --rm -v "$PWD:/work" ingot merge recipe.yml out
# The packages are those of tools/setup; tests/cli/documents_test.py compares them.
FROM debian:12-slim AS build
RUN apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends \
    g++ cmake ninja-build pkg-config ccache libcli11-dev libyaml-cpp-dev \
    nlohmann-json3-dev libfmt-dev libxxhash-dev liburing-dev libpcre2-dev \
    libopenblas-pthread-dev \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
WORKDIR /src
RUN cmake -S . -B /build -G Ninja -DCMAKE_BUILD_TYPE=Release -DINGOT_UNITY=ON -DINGOT_TESTS=OFF -DINGOT_BENCH=OFF \
    && cmake --build /build --target ingot_cli ingot_pages \
    && cmake --install /build --prefix /usr/local --strip

FROM debian:12-slim
RUN apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends \
    libyaml-cpp0.7 libfmt9 libxxhash0 liburing2 libpcre2-8-0 libopenblas0-pthread \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /usr/local/bin/ingot /usr/local/bin/ingot
COPY --from=build /usr/local/share /usr/local/share
RUN ingot --version
WORKDIR /work
ENTRYPOINT ["ingot"]
