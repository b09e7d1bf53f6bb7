package trunkline

import (
	"net"
	"strconv"
	"strings"
)

// DefaultPort is where a server listens unless told otherwise.
const DefaultPort = 8765

// hostPort turns a URL whose scheme and port are optional into what net.Dial takes.
func hostPort(url string) (string, error) {
	rest := url
	if scheme, after, ok := strings.Cut(url, "://"); ok {
		switch strings.ToLower(scheme) {
		case "trunkline", "nats", "tcp":
		default:
			return "", invalid("URL %q has the scheme %q; use trunkline://HOST:PORT", url, scheme)
		}
		rest = after
	}
	rest = strings.TrimSuffix(rest, "/")
	if strings.ContainsAny(rest, "/@?# \t\r\n,") {
		return "", invalid("URL %q is more than HOST:PORT", url)
	}
	if rest == "" {
		rest = "127.0.0.1"
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		host, port = strings.Trim(rest, "[]"), strconv.Itoa(DefaultPort)
		if strings.Contains(host, ":") && net.ParseIP(host) == nil {
			return "", invalid("URL %q is not HOST:PORT", url)
		}
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", invalid("URL %q has the port %q; a port is 1 to 65535", url, port)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}
