package profile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func open(t *testing.T) (Store, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := Open(func(name string) string { return map[string]string{"XDG_CONFIG_HOME": dir}[name] })
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func TestContextsAreKeptForTheirOwner(t *testing.T) {
	s, dir := open(t)
	if names, err := s.Names(); names != nil || err != nil {
		t.Error(names, err)
	}
	for _, name := range []string{"prod", "dev.1"} {
		if err := s.Add(name, Context{URL: name + ":8765", Description: "the " + name}); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "trunkline", "context", "prod.yaml"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if names, err := s.Names(); strings.Join(names, " ") != "dev.1 prod" || err != nil {
		t.Error(names, err)
	}
	if c, err := s.Get("prod"); c != (Context{"prod:8765", "the prod"}) || err != nil {
		t.Error(c, err)
	}
	if err := s.Add("prod", Context{URL: "x"}); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	if err := s.Select("prod"); err != nil {
		t.Error(err)
	}
	if now, err := s.Selected(); now != "prod" || err != nil {
		t.Error(now, err)
	}
	if selected, err := s.Remove("dev.1"); selected || err != nil {
		t.Error(selected, err)
	}
	if selected, err := s.Remove("prod"); !selected || err != nil {
		t.Error(selected, err)
	}
	if now, err := s.Selected(); now != "" || err != nil {
		t.Error(now, err)
	}
}

func TestWhatIsNoContextIsRefused(t *testing.T) {
	s, dir := open(t)
	for _, name := range []string{"", "..", "../x", "a/b", "-x", "a b", strings.Repeat("x", 65)} {
		if err := s.Add(name, Context{URL: "x"}); err == nil {
			t.Errorf("%q is taken for a name", name)
		}
	}
	for _, f := range []func() error{
		func() error { return s.Select("no") },
		func() error { _, err := s.Get("no"); return err },
		func() error { _, err := s.Remove("no"); return err },
	} {
		if err := f(); !errors.Is(err, ErrUnknown) {
			t.Error(err)
		}
	}
	files := filepath.Join(dir, "trunkline", "context")
	if err := os.MkdirAll(files, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"typo": "ulr: x\n", "empty": "description: x\n", "list": "- x\n"} {
		file := filepath.Join(files, name+".yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(name); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(func(string) string { return "" }); err == nil {
		t.Error("contexts are kept nowhere")
	}
	s, err := Open(func(name string) string { return map[string]string{"HOME": "/h"}[name] })
	if err != nil || s.dir != "/h/.config/trunkline" {
		t.Error(s, err)
	}
}
