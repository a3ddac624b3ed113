import { TaskElement } from './element.js'
import { percent } from './format.js'
import { Stale } from './stale.js'
import { stageWord } from './stages.js'

/** The bar of a running install in a list. */
class TaskRun extends TaskElement {
  static types = ['progress']
  #stale = null

  connectedCallback() {
    super.connectedCallback()
    if (this.dataset.status === 'installing') this.#stale = new Stale(this.querySelector('[data-part="as-of"]'))
  }

  disconnectedCallback() {
    super.disconnectedCallback()
    this.#stale?.stop()
  }

  draw({ stage, percentage }) {
    if (this.dataset.status !== 'installing') return
    this.part('stage', stageWord(stage))
    this.part('percent', percent(percentage))
    this.querySelector('progress').value = percentage
    this.#stale?.fresh()
  }
}
customElements.define('task-run', TaskRun)
