{{- define "cconvert.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end -}}
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

{{- define "cconvert.natsURL" -}}
{{- if .Values.nats.url -}}
{{- $scheme := splitList "://" .Values.nats.url | first -}}
{{- $server := splitList "://" .Values.nats.url | last -}}
{{ $scheme }}://{{ .Values.nats.user }}:$(NATS_PASSWORD)@{{ $server }}
{{- else -}}
nats://{{ .Values.nats.user }}:$(NATS_PASSWORD)@{{ include "cconvert.name" . }}-nats:4222
{{- end -}}
{{- end -}}

{{/* What the pods of workers and of the service have in common. */}}
{{- define "cconvert.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "cconvert.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
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
