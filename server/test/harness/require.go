package harness

import (
	"net"
	"os"
	"testing"
)

// Missing ends a test that cannot run here: it is skipped, or fails where TRUNKLINE_TEST_REQUIRE says that nothing may be
// missing, as make test does.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("TRUNKLINE_TEST_REQUIRE") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// FreeAddress is a loopback address that nobody listens on.
func FreeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}
