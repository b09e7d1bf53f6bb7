package plugins

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func TestAThirdPartysStoreServes(t *testing.T) {
	shelf := newShelf(t)
	shelf.put("storage", "onefile", built("onefile"), "")
	s := shelf.serve()
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t partitions=3 storage=onefile", "+OK t")
	load := startLoad(t, s, "t")
	for i := range 4 {
		load.more(100)
		p := info(t, l, "storage/onefile")
		if i == 3 {
			ask(t, l, "PLUGIN RELOAD storage/onefile", "+OK storage/onefile")
		} else if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "another process serves", func() bool {
			now := info(t, l, "storage/onefile")
			return now.State == "ready" && now.PID != p.PID
		})
	}
	load.more(100)
	load.end(s, 3)
	pid := info(t, l, "storage/onefile").PID
	s.Kill()
	harness.Eventually(t, "it ends with the server", func() bool { return !harness.Alive(pid) })
	s.Restart()
	load.end(s, 3) // everything is there
	if _, err := os.Stat(filepath.Join(s.Data, "onefile", "t-2", "log")); err != nil {
		t.Error(err)
	}
	l = s.Dial()
	ask(t, l, "TOPIC DELETE t", "+OK t")
	if dirs, err := filepath.Glob(filepath.Join(s.Data, "onefile", "t-*")); err != nil || len(dirs) != 0 {
		t.Errorf("left are %q, %v", dirs, err)
	}
}

func TestAThirdPartysMetadataServes(t *testing.T) {
	shelf := newShelf(t)
	shelf.put("metadata", "keeper", built("keeper"), "")
	shelf.rest = "metadata: keeper\n"
	s := shelf.serve()
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t partitions=3", "+OK t")
	ask(t, l, "SEND t/1 x", "+OK t/1@0 disk")
	for i, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		p := info(t, l, "metadata/keeper")
		if p.Version != "2.0.0" || p.Shipped {
			t.Errorf("%+v", p)
		}
		if err := syscall.Kill(p.PID, signal); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "another process serves", func() bool {
			if got := l.Ask("SEND t/1 x"); !strings.HasPrefix(got, "+OK t/1@") {
				t.Fatalf("meanwhile: %q", got)
			}
			now := info(t, l, "metadata/keeper")
			return now.State == "ready" && now.PID != p.PID
		})
		ask(t, l, fmt.Sprintf("TOPIC CREATE u%d", i), fmt.Sprintf("+OK u%d", i))
	}
	s.Kill()
	s.Restart()
	if got := s.Dial().Ask("SEND t/1 x"); !strings.HasPrefix(got, "+OK t/1@") {
		t.Error(got)
	}
	if _, err := os.Stat(filepath.Join(s.Data, "meta", "keeper.db")); err != nil {
		t.Error(err)
	}
}

// TestAServerWithoutItsMetadataSaysWhy: there is nothing that it could serve.
func TestAServerWithoutItsMetadataSaysWhy(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(e *entry)
		says  string
	}{
		"checksum": {func(e *entry) { e.sha256 = strings.Repeat("0", 64) }, "its sha256 is not the one it is pinned to"},
		"garbage":  {func(e *entry) { e.write(t, "#!/bin/sh\necho hello, world; exec sleep 600\n") }, `the plugin printed "hello, world" first`},
		"version":  {func(e *entry) { e.write(t, "#!/bin/sh\necho '1|99|unix|/nowhere/x|grpc|'; exec sleep 600\n") }, "the plugin speaks version 99"},
		"crash":    {func(e *entry) { e.write(t, "#!/bin/sh\necho out of flux >&2; exit 7\n") }, "out of flux"},
		"hang":     {func(e *entry) { e.write(t, "#!/bin/sh\nexec sleep 600\n") }, "no working connection in time"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			shelf := newShelf(t)
			test.spoil(shelf.put("metadata", "keeper", built("keeper"), ""))
			shelf.rest = "metadata: keeper\n"
			shelf.save()
			out, err := exec.Command(harness.Binary("trunkline-server"), "-c", shelf.file, "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--http", "-").CombinedOutput()
			if err == nil || !strings.Contains(string(out), test.says) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
