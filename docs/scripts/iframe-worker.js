// A browser starts no worker for a page opened from a disk, and the search runs in one. There, a hidden frame takes its
// place: the worker's script runs in the frame, and messages are handed over as events.
class FrameWorker extends EventTarget {
  constructor(url) {
    super()
    this.onmessage = null
    this.waiting = [] // messages sent before the script has run
    this.frame = document.createElement("iframe")
    this.frame.hidden = true
    this.frame.title = "search"
    document.body.append(this.frame)
    const inner = this.frame.contentWindow
    inner.postMessage = data => {
      const event = new MessageEvent("message", { data })
      this.dispatchEvent(event)
      if (this.onmessage) this.onmessage(event)
    }
    inner.importScripts = (...urls) => Promise.all(urls.map(each => this.load(each)))
    this.load(url).then(() => {
      const waiting = this.waiting
      this.waiting = null
      waiting.forEach(data => this.postMessage(data))
    })
  }

  load(url) {
    return new Promise((done, failed) => {
      const script = this.frame.contentDocument.createElement("script")
      script.src = new URL(url, document.baseURI).href
      script.onload = done
      script.onerror = failed
      this.frame.contentDocument.body.append(script)
    })
  }

  postMessage(data) {
    if (this.waiting) this.waiting.push(data)
    else this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }))
  }

  terminate() {
    this.frame.remove()
  }
}

if (location.protocol === "file:") window.Worker = FrameWorker
