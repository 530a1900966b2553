{{- define "eir.labels" -}}
{{ include "eir.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "eir.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "eir.image" -}}
{{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* The ports of a pod: [{name, port, protocol, url}]. `url`: how the configuration says it. */ -}}
{{- define "eir.ports" -}}
{{- $at := .Values.listen.address -}}
{{- $ports := list -}}
{{- with .Values.listen.tcp }}{{ $ports = append $ports (dict "name" "diameter" "port" . "protocol" "TCP" "url" (printf "tcp://%s:%v" $at .)) }}{{ end -}}
{{- with .Values.listen.sctp }}{{ $ports = append $ports (dict "name" "diameter-sctp" "port" . "protocol" "SCTP" "url" (printf "sctp://%s:%v" $at .)) }}{{ end -}}
{{- with .Values.listen.tls }}{{ $ports = append $ports (dict "name" "diameter-tls" "port" . "protocol" "TCP" "url" (printf "tls://%s:%v" $at .)) }}{{ end -}}
{{- with .Values.listen.n5g }}{{ $ports = append $ports (dict "name" "n5g-eir" "port" . "protocol" "TCP" "url" (printf "%s://%s:%v" (ternary "https" "http" (ne $.Values.tls.secretName "")) $at .)) }}{{ end -}}
{{- $ports | toJson -}}
{{- end }}

{{- define "eir.store" -}}
{{- $url := .Values.redis.url -}}
{{- if and $url .Values.redis.passwordSecret.name -}}
{{ $url }}{{ ternary "&" "?" (contains "?" $url) }}password_file=redis-password
{{- else -}}
{{ $url | default "sqlite" }}
{{- end -}}
{{- end }}

{{- /* A quantity of Kubernetes, such as 1Gi or 2.5G, in bytes. */ -}}
{{- define "eir.bytes" -}}
{{- $units := dict "" 1 "m" 0.001 "k" 1e3 "K" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 -}}
{{- if kindIs "string" . -}}
{{ mulf (regexFind "^[0-9.]+" . | float64) (get $units (regexFind "[A-Za-z]*$" .)) | int64 }}
{{- else -}}
{{ int64 . }}
{{- end -}}
{{- end }}

{{- /* The configuration of one pod as YAML. Takes (list CONTEXT ORDINAL). */ -}}
{{- define "eir.config" -}}
{{- $ := index . 0 -}}
{{- $urls := list -}}
{{- $n5g := list -}}
{{- range include "eir.ports" $ | fromJsonArray -}}
{{- if eq .name "n5g-eir" }}{{ $n5g = append $n5g .url }}{{ else }}{{ $urls = append $urls .url }}{{ end -}}
{{- end -}}
{{- $realm := $.Values.identity.realm -}}
{{- $host := printf "%s-%d.%s" ($.Values.identity.host | default $.Release.Name) (int (index . 1)) $realm -}}
{{- $own := dict "identity" (dict "host" $host "realm" $realm) "listen" $urls "state" "/var/lib/eir" "store" (include "eir.store" $) "http" (printf "%s:9868" $.Values.listen.address) -}}
{{- if $n5g }}{{ $_ := set $own "n5g" (dict "listen" $n5g) }}{{ end -}}
{{- if $.Values.tls.secretName }}{{ $_ := set $own "tls" (dict "certificate" "tls/tls.crt" "key" "tls/tls.key" "ca" "tls/ca.crt") }}{{ end -}}
{{- $memory := include "eir.bytes" $.Values.resources.limits.memory | int64 -}}
{{- /* If the container's memory ends, all its processes end: a load gets half, and at least the key's minimum. */ -}}
{{- $usual := dict "sctp" (dict "optional" true) "limits" (dict "load_memory" (max 134217728 (div $memory 2))) -}}
{{- mergeOverwrite $usual (deepCopy $.Values.config) $own | toYaml -}}
{{- end }}

{{- /* What no schema can say, because it is between two values. */ -}}
{{- define "eir.check" -}}
{{- $v := .Values -}}
{{- $_ := required "identity.realm has to be given, such as epc.mnc001.mcc001.3gppnetwork.org" $v.identity.realm -}}
{{- if and (gt (int $v.replicas) 1) (not $v.redis.url) }}{{ fail (printf "replicas: %v needs redis.url: without Redis each pod would have lists of its own" $v.replicas) }}{{ end -}}
{{- if not (or $v.redis.url $v.persistence.enabled) }}{{ fail "persistence.enabled: false needs redis.url: without Redis the lists would be gone with the pod" }}{{ end -}}
{{- if and $v.listen.tls (not $v.tls.secretName) }}{{ fail "listen.tls needs tls.secretName" }}{{ end -}}
{{- if and $v.multus.enabled (not $v.multus.networks) }}{{ fail "multus.enabled needs multus.networks" }}{{ end -}}
{{- range $section, $keys := dict "" (list "listen" "tls" "state" "store" "http") "identity" (list "host" "realm") "n5g" (list "listen") -}}
{{- $there := ternary $v.config (get $v.config $section) (eq $section "") | default dict -}}
{{- range $keys }}{{ if hasKey $there . }}{{ fail (printf "config.%s is set by the chart: remove it" (list $section . | compact | join ".")) }}{{ end }}{{ end -}}
{{- end -}}
{{- range $v.config.peers }}
{{- if ge (int (.watchdog_s | default 30)) (int $v.terminationGracePeriodSeconds) }}{{ fail (printf "terminationGracePeriodSeconds: %v has to be longer than watchdog_s of every peer: %v" $v.terminationGracePeriodSeconds (.watchdog_s | default 30)) }}{{ end -}}
{{- end -}}
{{- end }}
