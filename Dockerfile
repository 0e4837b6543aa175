# Built by "make image", which puts the program and the certificates into bin/.
FROM scratch
COPY bin/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY bin/cconvert /cconvert
USER 65532:65532
ENV HOME=/tmp
ENTRYPOINT ["/cconvert"]
