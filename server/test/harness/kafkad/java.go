// Package kafkad runs Kafka for tests: its classes, and a broker of its own. The jars come through Maven into a cache directory;
// without Java or Maven a test is skipped, and fails where nothing may be skipped.
//
// It is a program to compare with and to be judged by; whoever talks to the broker brings a client.
package kafkad

import (
	"bytes"
	"context"
	_ "embed"
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

const (
	// Version is the one in pom.xml.
	Version = "4.3.1"
	// downloadPatience bounds the first run on a machine; 56 MB come then.
	downloadPatience = 4 * time.Minute
	// Patience bounds a run of one of Kafka's tools.
	Patience = time.Minute
)

// project is what Maven is told.
//
//go:embed pom.xml
var project []byte

// Java runs classes of Kafka.
type Java struct {
	program   string
	classpath string
	logging   string
	options   []string
}

// toolOptions are for what runs for seconds: what would be compiled well is not worth compiling.
var toolOptions = []string{"-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"}

// serverOptions are those of Kafka's own start script.
var serverOptions = []string{"-server", "-Xms1g", "-Xmx1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35",
	"-XX:+ExplicitGCInvokesConcurrent"}

// Find finds Java and Kafka's jars, and gets these where they are not in the cache.
func Find(t testing.TB) *Java {
	t.Helper()
	program, err := exec.LookPath("java")
	if err != nil {
		harness.Missing(t, "java is not installed; make test installs it")
	}
	jars, err := fetchJars(t)
	if err != nil {
		harness.Missing(t, "Kafka %s is not there: %v", Version, err)
	}
	logging := filepath.Join(t.TempDir(), "log4j2.properties")
	const quiet = "status = error\nrootLogger.level = warn\nrootLogger.appenderRef.out.ref = out\n" +
		"appender.out.type = Console\nappender.out.name = out\nappender.out.layout.type = PatternLayout\nappender.out.layout.pattern = [log] %p %c{1}: %m%n\n"
	if err := os.WriteFile(logging, []byte(quiet), 0o644); err != nil {
		t.Fatal(err)
	}
	return &Java{program: program, classpath: filepath.Join(jars, "*"), logging: logging, options: toolOptions}
}

// Tuned is j with the options of Kafka's own start script: for who measures.
func (j *Java) Tuned() *Java {
	tuned := *j
	tuned.options = serverOptions
	return &tuned
}

// fetchJars returns the directory with the jars. It is filled under another name, so that it is whole when it is there.
func fetchJars(t testing.TB) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "trunkline-test")
	jars := filepath.Join(cache, "kafka-"+Version)
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
	pom := filepath.Join(fresh, "pom.xml")
	if err := os.WriteFile(pom, project, 0o644); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(t.Context(), downloadPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, maven, "-q", "-B", "-f", pom, "-Dkafka.version="+Version,
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

// Command is a JVM that runs class.
func (j *Java) Command(ctx context.Context, class string, args ...string) *exec.Cmd {
	options := append([]string{}, j.options...)
	options = append(options, "-Dlog4j2.configurationFile="+j.logging, "-cp", j.classpath, class)
	return exec.CommandContext(ctx, j.program, append(options, args...)...)
}

// Run runs class to its end and returns what it printed.
func (j *Java) Run(t testing.TB, stdin string, class string, args ...string) (stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	cmd := j.Command(ctx, class, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s\n%s", class, err, tail(out.String()), tail(errs.String()))
	}
	return out.String(), errs.String()
}

func tail(s string) string { return s[max(0, len(s)-4000):] }
