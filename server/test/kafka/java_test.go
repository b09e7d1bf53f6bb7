// Package kafka has Kafka 4 as the judge of our bytes: its own tools read what we write, its broker serves what we
// export, and we read what its broker wrote.
package kafka

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
	"github.com/trunkline-mq/trunkline/server/test/harness/kafkad"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// cli runs the trunkline command and returns its output and exit code.
func cli(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), kafkad.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, harness.Binary("trunkline"), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var failed *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}
