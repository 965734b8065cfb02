{{- define "meter-proxy.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "meter-proxy.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: proxy
{{- end -}}

{{- define "meter-proxy.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* What is wrong with values that are good one by one. */}}
{{- define "meter-proxy.check" -}}
{{- range $option := list "listen" "admin" "state_dir" -}}
{{- if hasKey $.Values.config $option -}}
{{- fail (printf "config.%s is the chart's own; take it out" $option) -}}
{{- end -}}
{{- end -}}
{{- $written := dig "limits" "drain_timeout" "60s" .Values.config -}}
{{- if ne $written (printf "%ds" (int .Values.drain.timeoutSeconds)) -}}
{{- fail (printf "drain.timeoutSeconds (%d) and config.limits.drain_timeout (%s) must be the same time" (int .Values.drain.timeoutSeconds) $written) -}}
{{- end -}}
{{- $store := dig "redis" "url" "embedded" .Values.config -}}
{{- if and (eq $store "embedded") (or .Values.autoscaling.enabled (gt (int .Values.replicas) 1)) -}}
{{- fail "several pods need a common store: set config.redis.url, or replicas: 1 without autoscaling" -}}
{{- end -}}
{{- end -}}
