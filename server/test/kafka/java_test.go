// Package kafka has Kafka 4 as the judge of our bytes: its own tools read what we write, its broker serves what we
// export, and we read what its broker wrote. The jars come through Maven into a cache directory; without Java or Maven
// the tests are skipped, and fail where nothing may be skipped.
package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

const (
	// kafkaVersion is the one in pom.xml.
	kafkaVersion = "4.3.1"
	// downloadPatience bounds the first run on a machine; 56 MB come then.
	downloadPatience = 4 * time.Minute
	javaPatience     = time.Minute
)

// java runs classes of Kafka.
type java struct {
	program   string
	classpath string
	logging   string
}

// kafka finds Java and Kafka's jars, and gets these where they are not in the cache.
func kafka(t *testing.T) *java {
	t.Helper()
	program, err := exec.LookPath("java")
	if err != nil {
		harness.Missing(t, "java is not installed; make test installs it")
	}
	jars, err := fetchJars(t)
	if err != nil {
		harness.Missing(t, "Kafka %s is not there: %v", kafkaVersion, err)
	}
	logging := filepath.Join(t.TempDir(), "log4j2.properties")
	const quiet = "status = error\nrootLogger.level = warn\nrootLogger.appenderRef.out.ref = out\n" +
		"appender.out.type = Console\nappender.out.name = out\nappender.out.layout.type = PatternLayout\nappender.out.layout.pattern = [log] %p %c{1}: %m%n\n"
	if err := os.WriteFile(logging, []byte(quiet), 0o644); err != nil {
		t.Fatal(err)
	}
	return &java{program: program, classpath: filepath.Join(jars, "*"), logging: logging}
}

// fetchJars returns the directory with the jars. It is filled under another name, so that it is whole when it is there.
func fetchJars(t *testing.T) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "trunkline-test")
	jars := filepath.Join(cache, "kafka-"+kafkaVersion)
	if _, err := os.Stat(jars); err == nil {
		return jars, nil
	}
	maven, err := exec.LookPath("mvn")
	if err != nil {
		return "", errors.New("mvn is not installed; make test installs it")
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	fresh, err := os.MkdirTemp(cache, "fetching-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(fresh) }()
	ctx, cancel := context.WithTimeout(t.Context(), downloadPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, maven, "-q", "-B", "-f", "pom.xml", "-Dkafka.version="+kafkaVersion,
		"dependency:copy-dependencies", "-DoutputDirectory="+filepath.Join(fresh, "jars"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("mvn: %w\n%s", err, out)
	}
	if err := os.Rename(filepath.Join(fresh, "jars"), jars); err != nil {
		if _, there := os.Stat(jars); there != nil { // nobody else was faster
			return "", err
		}
	}
	return jars, nil
}

// command is a JVM that runs class.
func (j *java) command(ctx context.Context, class string, args ...string) *exec.Cmd {
	options := []string{"-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dlog4j2.configurationFile=" + j.logging, "-cp", j.classpath, class}
	return exec.CommandContext(ctx, j.program, append(options, args...)...)
}

// run runs class to its end and returns what it printed.
func (j *java) run(t *testing.T, stdin string, class string, args ...string) (stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), javaPatience)
	defer cancel()
	cmd := j.command(ctx, class, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s\n%s", class, err, tail(out.String()), tail(errs.String()))
	}
	return out.String(), errs.String()
}

func tail(s string) string { return s[max(0, len(s)-4000):] }

// cli runs the trunkline command and returns its output and exit code.
func cli(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), javaPatience)
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
