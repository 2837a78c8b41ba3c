# The product: one static program under two names, and nothing else.
#
# Both base images can be replaced, for builds where no registry of images can be reached; the lab does
# (`cargo lab demo`). No BuildKit feature is used, so any engine builds it.

ARG BUILDER=rust:1.95-trixie
ARG RUNTIME=scratch

FROM ${BUILDER} AS build
WORKDIR /src
# Everything that .dockerignore lets through. The workspace can't be loaded in parts: cargo wants every member's manifest.
COPY . .
# Named, so that build scripts and macros are not linked as the product is: see .cargo/config.toml.
RUN target="$(uname -m)-unknown-linux-gnu" \
 && cargo build --release --locked --package requeen-coordinator --features with-agent --target "$target" \
 && mkdir /out \
 && cp "target/$target/release/coordinator" /out/ \
 && ln -s coordinator /out/agent

FROM ${RUNTIME}
# One file under two names: most of what the two programs are made of is the same.
COPY --from=build /out/ /usr/local/bin/
ENV PATH=/usr/local/bin
# Last, so that another version or date changes no layer.
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG CREATED=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="Requeen" \
      org.opencontainers.image.description="Upgrades Docker Engine on every node of a swarm, in order, without its services noticing" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0 OR MIT"
