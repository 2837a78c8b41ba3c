use serde_json::json;

use super::*;

/// What must not be left of a text, and what of it must be.
struct Case {
    text: &'static str,
    kept: &'static str,
}

const fn case(text: &'static str, kept: &'static str) -> Case {
    Case { text, kept }
}

#[test]
fn secrets_are_left_out_of_texts() {
    for Case { text: before, kept } in [
        // Swarm's own.
        case("join: SWMTKN-1-3pu6hszjas-8vxv8rss 10.0.0.1:2377", "join: [left-out] 10.0.0.1:2377"),
        case("key=\"SWMKEY-1-7c37Cc8654o6p38H\"", "key=\"[left-out]\""),
        case("key SWMKEY-1-7c/7Cc+654o6p38H, then", "key [left-out], then"),
        // Users and passwords in addresses.
        case("proxy http://user:pass@proxy:3128/ used", "proxy http://[left-out]@proxy:3128/ used"),
        case("https://token@host/x", "https://[left-out]@host/x"),
        case("http://us:p@ss@host:1", "http://[left-out]@host:1"),
        case("http://user:pa/ss@proxy:3128", "http://[left-out]@proxy:3128"),
        case("a=http://a:b@c,http://d:e@f", "a=http://[left-out]@c,http://[left-out]@f"),
        case("\"http://u:p@h\",\"ftp://v:q@i\"", "\"http://[left-out]@h\",\"ftp://[left-out]@i\""),
        // Headers.
        case("> Authorization: Basic dXNlcjpwYXNz\n> Host: x", "> Authorization: [left-out]\n> Host: x"),
        case("proxy-authorization:Bearer a b\nnext", "proxy-authorization:[left-out]\nnext"),
        case("{\"Authorization\":\"Bearer a\",\"x\":1}", "{\"Authorization\":\"[left-out]\",\"x\":1}"),
        case("map[Authorization:[Basic abc] Host:[h]]", "map[Authorization:[left-out]"),
        case("X-Registry-Auth: eyJ1c2VybmFtZSI6", "X-Registry-Auth: [left-out]"),
        // Names of secrets.
        case("--log-opt splunk-token=abc --debug", "--log-opt splunk-token=[left-out] --debug"),
        case("DB_PASSWORD=hunter2 NEXT=1", "DB_PASSWORD=[left-out] NEXT=1"),
        case("password: hunter2", "password: [left-out]"),
        case("tool --password hunter2 --verbose", "tool --password [left-out] --verbose"),
        case("\"secretKey\": \"ab\\\"cd\", \"x\": 1", "\"secretKey\": \"[left-out]\", \"x\": 1"),
        case(
            "msg=\"{\\\"token\\\":\\\"abc\\\",\\\"n\\\":1}\"",
            "msg=\"{\\\"token\\\":\\\"[left-out]\\\",\\\"n\\\":1}\"",
        ),
        case("GET /x?access_token=abc&page=2", "GET /x?access_token=[left-out]&page=2"),
        case("passwd='two words' x", "passwd='[left-out]' x"),
        case("tokens: [a, b] x", "tokens: [left-out] x"),
        case("tokens: [a,\n  b]", "tokens: [left-out]\n  b]"),
        case("password=\"never closed\nnext", "password=\"[left-out]\nnext"),
        case("http_proxy=user:pass@proxy:3128 x", "http_proxy=[left-out]@proxy:3128 x"),
        // PEM blocks, of whatever kind, on one line or many, and cut off at either end.
        case("a\n-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY-----\nb", "a\n[left-out]\nb"),
        case("x=-----BEGIN CERTIFICATE-----\\nMII\\n-----END CERTIFICATE-----\\ny", "x=[left-out]\\ny"),
        case("a -----BEGIN PRIVATE KEY-----\nMHc\nMHd", "a [left-out]"),
        case("-------BEGIN PRIVATE KEY-----\nMHc\n-----END PRIVATE KEY-------", "--[left-out]--"),
        case("MHc\nMHd\n-----END PRIVATE KEY-----\nb", "[left-out]\nb"),
        case(
            "-----BEGIN A-----\n1\n-----END A-----\nm\n-----BEGIN B-----\n2\n-----END B-----\n",
            "[left-out]\nm\n[left-out]\n",
        ),
    ] {
        assert_eq!(text(before), kept, "{before}");
        assert_eq!(text(kept), kept, "done twice");
    }
}

#[test]
fn what_is_no_secret_stays() {
    for plain in [
        "",
        "level=info msg=\"API listen on /run/docker.sock\" n=3",
        "unix:///run/docker.sock tcp://10.0.0.1:2376",
        "image requeen:0.1@sha256:0123 from https://github.com/a/b@v1.2",
        "https://download.docker.com:443/linux/static/stable/",
        "EnvironmentFile=-/etc/default/docker",
        "authorization-plugins: none",
        "\"secret\": null, \"token\": \"\"",
        "the token is not here; passwords neither",
        "HTTP_PROXY=http://proxy:3128",
        "größe=1 € http://münchen/",
        "Tokens {",
        "\"tokens\": [\n  1\n]",
        "----- a ----- SWM and SWMX -----BEGINNING",
    ] {
        assert_eq!(text(plain), plain);
    }
}

#[test]
fn units_keep_no_values_of_variables() {
    let before = "\
# /etc/systemd/system/docker.service.d/proxy.conf
[Service]
Environment=\"HTTP_PROXY=http://u:p@proxy\" \\
  \"B=two\" \\
# words
  C=three
#Environment=D=four
  Environment = E=five
EnvironmentFile=-/etc/default/docker
ExecStart=/usr/sbin/dockerd --log-opt splunk-token=six
";
    let kept = "\
# /etc/systemd/system/docker.service.d/proxy.conf
[Service]
Environment=[left-out]
#Environment=[left-out]
  Environment=[left-out]
EnvironmentFile=-/etc/default/docker
ExecStart=/usr/sbin/dockerd --log-opt splunk-token=[left-out]
";
    assert_eq!(unit(before), kept);
    assert_eq!(unit(kept), kept);
}

#[test]
fn values_are_searched_by_name_and_by_text() {
    let mut value = json!({
        "log-driver": "splunk",
        "log-opts": { "splunk-token": "a", "sumo-url": "https://x/b", "tag": "c", "max-size": "10m" },
        "proxies": { "http-proxy": "u:p@proxy:3128", "https-proxy": "http://u:p@proxy", "no-proxy": "localhost" },
        "registry-mirrors": ["https://u:p@mirror"],
        "labels": ["rack=a"],
        "data-root": "/var/lib/docker",
        "live-restore": false,
        "ContainerSpec": {
            "Env": ["A=1", "B"],
            "Args": ["--password", "p", "--x", "y", "--token=q"],
            "Secrets": [{ "SecretName": "s" }],
        },
        "JoinTokens": { "Worker": "SWMTKN-1-a", "n": 1 },
        "TLSInfo": { "TrustRoot": "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n" },
        "tokens": ["a", "b"],
        "token": "",
    });
    json(&mut value);
    let kept = json!({
        "log-driver": "splunk",
        "log-opts": { "splunk-token": LEFT_OUT, "sumo-url": LEFT_OUT, "tag": LEFT_OUT, "max-size": "10m" },
        "proxies": {
            "http-proxy": "[left-out]@proxy:3128", "https-proxy": "http://[left-out]@proxy", "no-proxy": "localhost",
        },
        "registry-mirrors": ["https://[left-out]@mirror"],
        "labels": ["rack=a"],
        "data-root": "/var/lib/docker",
        "live-restore": false,
        "ContainerSpec": {
            "Env": ["A=[left-out]", "B"],
            "Args": ["--password", LEFT_OUT, "--x", "y", "--token=[left-out]"],
            "Secrets": [{ "SecretName": LEFT_OUT }],
        },
        "JoinTokens": { "Worker": LEFT_OUT, "n": 1 },
        "TLSInfo": { "TrustRoot": "[left-out]\n" },
        "tokens": [LEFT_OUT, LEFT_OUT],
        "token": "",
    });
    assert_eq!(value, kept);
    json(&mut value);
    assert_eq!(value, kept, "done twice");
}

#[test]
fn a_text_of_nothing_but_signs_takes_no_longer_than_another() {
    // Each of these would take hours if a sign made the rest of the text be read again.
    for sign in ["-----END ", "-----BEGIN x -----END ", "----- ", "SWMTKN ", "token=a ", "token=\"a\" ", "token=[a] "] {
        let long = sign.repeat(200_000);
        assert!(!text(&long).contains("token=a"), "{sign}");
    }
}
