package lru_test

import (
	"testing"

	"github.com/snapctl/snapctl/chunk/lru"
)

func TestCache(t *testing.T) {
	c := lru.New[string, int](2)
	c.Add("a", 1)
	c.Add("b", 2)
	if v, ok := c.Get("a"); !ok || v != 1 {
		t.Errorf("a: %d, %v", v, ok)
	}
	c.Add("c", 3) // b was used least recently
	if _, ok := c.Peek("b"); ok || c.Len() != 2 {
		t.Errorf("b is kept, of %d", c.Len())
	}
	defer func() {
		if recover() == nil {
			t.Error("a cache of nothing was made")
		}
	}()
	lru.New[string, int](0)
}
