{{/* The name of the release's objects, short enough for those of its pods. */}}
{{- define "cconvert.name" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = .Release.Name -}}
{{- if not (contains .Chart.Name $name) }}{{ $name = printf "%s-%s" $name .Chart.Name }}{{ end -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]" $name) }}{{ $name = printf "c-%s" $name }}{{ end -}}
{{ regexReplaceAll "[^-a-z0-9]" $name "-" | trunc 40 | trimSuffix "-" }}
{{- end -}}

{{- define "cconvert.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/part-of: cconvert
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* The labels by which pods are found: (dict "root" . "app" "worker"). */}}
{{- define "cconvert.selector" -}}
app.kubernetes.io/name: cconvert
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .app }}
{{- end -}}

{{- define "cconvert.image" -}}
{{- $repository := required "image.repository: where you have pushed what \"make image\" has built" .Values.image.repository -}}
{{- $digest := required "image.digest: the digest of the program's image, as \"crane digest\" prints it" .Values.image.digest -}}
{{ $repository }}@{{ $digest }}
{{- end -}}

{{- define "cconvert.natsConf" -}}
port: 4222
http_port: 8222
server_name: $POD_NAME
jetstream { store_dir: /data, max_file_store: {{ trimSuffix "i" .Values.nats.storage }} }
max_payload: 8MB
authorization { user: {{ .Values.nats.user }}, password: $NATS_PASSWORD }
{{- if gt (int .Values.nats.replicas) 1 }}
cluster {
  name: cconvert
  port: 6222
  authorization { user: route, password: $NATS_PASSWORD }
}
{{- end }}
{{- end }}

{{/* How workers and the service reach the queue. */}}
{{- define "cconvert.natsArgs" -}}
{{- if and .Values.nats.caSecret (not (hasPrefix "tls://" .Values.nats.url)) -}}
{{- fail "nats.caSecret: only a server of your own speaks TLS: nats.url begins with tls://" -}}
{{- end -}}
- --nats
- {{ .Values.nats.url | default (printf "nats://%s-nats:4222" (include "cconvert.name" .)) | quote }}
- --nats-user
- {{ .Values.nats.user | quote }}
- --nats-password-file
- /queue/password
- --nats-timeout
- 2m
{{- if and (not .Values.nats.url) (ge (int .Values.nats.replicas) 3) }}
- --nats-replicas
- "3"
{{- end }}
{{- if .Values.nats.caSecret }}
- --nats-ca
- /nats/ca.crt
{{- end }}
{{- end -}}

{{/* The volume with credentials of registries: (dict "root" . "secret" "name"). */}}
{{- define "cconvert.registries" -}}
- name: registries
  secret:
    secretName: {{ .secret | quote }}
    {{- if ne .root.Values.registries.file "config.json" }}
    items: [{key: {{ .root.Values.registries.file | quote }}, path: config.json}]
    {{- end }}
{{- end -}}

{{- define "cconvert.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Starting takes as long as the queue is waited for. */}}
{{- define "cconvert.startup" -}}
failureThreshold: 60
periodSeconds: 5
timeoutSeconds: 5
{{- end -}}

{{- define "cconvert.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
