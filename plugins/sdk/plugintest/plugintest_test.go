package plugintest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/trunkline-mq/trunkline/plugins/sdk"
)

// The test binary is also every child: "child KIND DEFECT" as its arguments.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "child" {
		childMain(os.Args[2], os.Args[3])
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// failed runs the cases that match on a child and returns the cases that failed, with their first failures.
func failed(t *testing.T, kind, defect, match string) map[string]string {
	t.Helper()
	told := 0
	results, err := Run(t.Context(), Options{
		Kind: kind, Name: "probe", Command: []string{"/proc/self/exe", "child", kind, defect},
		Match: match, Report: func(Result) { told++ },
	})
	if err != nil {
		t.Fatal(err)
	}
	if told != len(results) || told == 0 {
		t.Errorf("%d results, told of %d", len(results), told)
	}
	found := map[string]string{}
	for _, r := range results {
		if len(r.Failures) > 0 {
			found[r.Case] = r.Failures[0]
		}
	}
	return found
}

func TestASoundPluginPasses(t *testing.T) {
	for _, kind := range []string{sdk.KindPartitioner, sdk.KindMetadata, sdk.KindStorage} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			for c, why := range failed(t, kind, "sound", "") {
				t.Errorf("%s: %s", c, why)
			}
		})
	}
}

// TestSeededDefectsAreFoundByName seeds one defect at a time; the case of its name has to fail.
func TestSeededDefectsAreFoundByName(t *testing.T) {
	for _, test := range []struct{ kind, defect, found, says string }{
		{sdk.KindPartitioner, "garbage", "starts and says what it is", `printed "Hello!" first`},
		{sdk.KindPartitioner, "crash", "starts and says what it is", "the flux capacitor is missing"},
		{sdk.KindPartitioner, "version", "starts and says what it is", "speaks version 99"},
		{sdk.KindPartitioner, "other", "starts and says what it is", "partitioner another"},
		{sdk.KindPartitioner, "nameless", "starts and says what it is", "version"},
		{sdk.KindPartitioner, "serves every number", "impossible numbers of partitions are refused", ""},
		{sdk.KindPartitioner, "plan of its own kind", "plans fit their topic and can be evaluated", `"mine"`},
		{sdk.KindPartitioner, "another plan each time", "plans are the same each time", ""},
		{sdk.KindPartitioner, "out of range", "called plans have an answer for every key", "partition 1 of 1"},
		{sdk.KindPartitioner, "by the call", "answers are the same each time", ""},
		{sdk.KindPartitioner, "by the company", "answers do not depend on what is asked along", ""},
		{sdk.KindPartitioner, "by the process", "answers are the same after a restart", ""},
		{sdk.KindMetadata, "guards are not looked at", "guards hold or nothing happens", ""},
		{sdk.KindMetadata, "lists lose their last", "lists are ordered and bounded by their prefix", ""},
		{sdk.KindMetadata, "watches skip", "a watch starts in the past", ""},
		{sdk.KindStorage, "makes what is missing", "missing partition is not made silently", ""},
		{sdk.KindStorage, "a ceiling is nothing to it", "cuts at the ceiling", ""},
		{sdk.KindStorage, "deletes nothing", "deletes by id", ""},
		{sdk.KindStorage, "trims nothing", "trims and remembers it", ""},
	} {
		t.Run(test.kind+"/"+test.defect, func(t *testing.T) {
			t.Parallel() // a process that was built with the race detector takes a second to end
			found := failed(t, test.kind, test.defect, test.found)
			why, ok := found[test.found]
			if !ok || !strings.Contains(why, test.says) {
				t.Errorf("found is %v", found)
			}
		})
	}
}

func TestAPluginThatCannotBeRunIsOneFailure(t *testing.T) {
	results, err := Run(t.Context(), Options{Kind: sdk.KindStorage, Name: "probe", File: filepath.Join(t.TempDir(), "nothing")})
	if err != nil || len(results) != 1 || !strings.Contains(results[0].Failures[0], "no such executable") {
		t.Errorf("%+v, %v", results, err)
	}
	if _, err := Run(t.Context(), Options{Kind: "authenticator", Name: "probe"}); !errors.Is(err, ErrKind) {
		t.Error(err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	results, err := Run(ctx, Options{
		Kind: sdk.KindPartitioner, Name: "probe", Command: []string{"/proc/self/exe", "child", sdk.KindPartitioner, "sound"},
		Report: func(Result) { cancel() },
	})
	if !errors.Is(err, context.Canceled) || len(results) != 1 {
		t.Errorf("%d results, %v", len(results), err)
	}
}

func TestTheTesterIsATest(t *testing.T) {
	var order []string
	var dir string
	failures := run(t.Context(), func(t *tester) {
		dir = t.TempDir()
		t.Cleanup(func() { order = append(order, "first"); t.Errorf("in a cleanup") })
		t.Cleanup(func() { order = append(order, "second"); t.Fatalf("fatal in a cleanup") })
		t.Errorf("one %d", 1)
		t.Fatalf("two")
		t.Errorf("never")
	})
	if !slices.Equal(failures, []string{"one 1", "two", "fatal in a cleanup", "in a cleanup"}) || !slices.Equal(order, []string{"second", "first"}) {
		t.Errorf("%q, %q", failures, order)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is there: %v", err)
	}
	failures = run(t.Context(), func(*tester) { panic("oh") })
	if len(failures) != 1 || !strings.HasPrefix(failures[0], "the suite panics: oh\n") {
		t.Errorf("%q", failures)
	}
}

func TestNamesOfCasesAreWords(t *testing.T) {
	for in, want := range map[string]string{"LeaseIsHeldOnce": "lease is held once", "DeletesByID": "deletes by id", "ANewInstance": "a new instance"} {
		if got := sentence(in); got != want {
			t.Errorf("%s became %q", in, got)
		}
	}
}
