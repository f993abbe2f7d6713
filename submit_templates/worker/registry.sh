# shellcheck shell=bash
# The last rung, for batches that may use a registry: the runtime pulls the image by its digest, which it verifies.

_rung_registry() {
    if _is_podman; then _podman_pull; else _from_origin _pull "${set_of[image.registry]##*:}.sif"; fi
}

_pull() {  # FILE: from the registry, by the runtime, which makes a SIF of it
    local reference=${set_of[image.registry]} status=0
    _runtime_environment
    [ -z "${set_of[http_proxy]:-}" ] || runtime_env+=("http_proxy=${set_of[http_proxy]}" "https_proxy=${set_of[http_proxy]}")
    rm -f -- "$part"
    _run "$limit" env -i "${runtime_env[@]}" "$runtime" -q pull "$part" "$reference" >&2 || status=$?
    fetch_result="failed ($status)" fetch_damage=''
    if [ "$status" = 0 ]; then
        _size "$part"
        image_bytes=${size:-0}
        if ! _sif_is_whole "$part"; then
            fetch_result="damaged: $sif_problem" fetch_damage=damaged
        elif _publish "$1"; then
            _served registry "$reference" "$1"
            return 0
        fi
    fi
    _tried registry "$reference" "$fetch_result" "$fetch_damage"
    return 1
}
